"""Random numbers that depend only on their key, also those that libraries draw."""

from __future__ import annotations

import pytest
import torch

from lora_studio.training.data.rng import generator, seeded


def test_random_numbers_depend_only_on_seed_and_purpose() -> None:
    def draw(*key: int, seed: int = 1, purpose: str = "noise") -> float:
        return float(torch.rand(1, generator=generator(seed, purpose, *key)))

    assert draw(3, 4) == draw(3, 4)
    keys = [draw(3, 4), draw(4, 3), draw(34), draw(3, 4, seed=2), draw(3, 4, purpose="latent")]
    assert len(set(keys)) == len(keys)


def test_seeded_repeats_the_draws_of_libraries_and_restores_the_global_state() -> None:
    def dropped(*key: int) -> torch.Tensor:
        with seeded(1, "dropout", *key, device=torch.device("cpu")):
            return torch.nn.functional.dropout(torch.ones(64))

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = dropped(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(dropped(3), first)
    assert not torch.equal(dropped(4), first)


def test_the_global_state_is_restored_after_an_error() -> None:
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError), seeded(1, "dropout", device=torch.device("cpu")):
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), state)
