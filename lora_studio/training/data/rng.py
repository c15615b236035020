"""Random numbers that depend on what they are for and on nothing else.

Every draw of a run comes from a generator keyed by (seed, purpose, counters), so that a resumed run gets exactly the
numbers of an uninterrupted one, on any device and in any order of draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from lora_studio.settings.recipe import Recipe


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """Return a CPU generator for one purpose, such as ("noise", step, sample)."""
    text = "/".join([str(seed), purpose, *map(str, counters)])
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    return torch.Generator().manual_seed(key)


@contextmanager
def seeded(seed: int, purpose: str, *counters: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, of the CPU and of `device`, for one purpose; restore their state afterwards.

    It is for draws inside libraries, like dropout. Gradient checkpointing repeats them: it preserves the RNG state.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(generator(seed, purpose, *counters).initial_seed())
        yield


def seeded_dropout(recipe: Recipe, step: int, first: int, *, device: torch.device) -> AbstractContextManager[None]:
    """Seed the dropout of the network for the batch that begins with sample `first` of a step, if there is any."""
    if not recipe.uses_dropout:
        return nullcontext()
    return seeded(recipe.seed, "dropout", step, first, device=device)
