"""Random numbers that depend on what they are for and on nothing else.

Every draw of a run is made by a generator keyed by (seed, purpose, counters), so that a run that was stopped goes on
with exactly the numbers that it would have had, on any device, in whatever order they are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator of its own for one purpose, such as ("noise", step, sample)."""
    text = "/".join([str(seed), purpose, *map(str, counters)])
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    return torch.Generator().manual_seed(key)


@contextmanager
def seeded(seed: int, purpose: str, *counters: int, device: torch.device) -> Iterator[None]:
    """Give torch's global generators, of the CPU and of `device`, a state of its own for one purpose; then put it back.

    It is for draws that libraries make, like dropout. Gradient checkpointing repeats them: it keeps the state.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(generator(seed, purpose, *counters).initial_seed())
        yield
