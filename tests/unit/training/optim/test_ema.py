"""EMA and schedule-free weights are swapped in and out without an effect on training."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy

import pytest
import torch
from torch import nn

from lora_studio.settings.recipe import Recipe
from lora_studio.training.optim.ema import AveragedWeights
from lora_studio.training.optim.optimizers import make_optimizer


def make(decay: float, optimizer: str = "AdamW") -> tuple[nn.Parameter, torch.optim.Optimizer, AveragedWeights]:
    weight = nn.Parameter(torch.linspace(-1, 1, 64).reshape(8, 8))
    recipe = Recipe(optimizer=optimizer, unet_lr=0.05, weight_decay=0)
    made = make_optimizer(recipe, [{"name": "unet", "params": [weight], "lr": 0.05}])
    return weight, made, AveragedWeights(made, [weight], decay)


def step(weight: nn.Parameter, optimizer: torch.optim.Optimizer, averages: AveragedWeights) -> torch.Tensor:
    optimizer.zero_grad()
    ((weight - 3) ** 2).sum().backward()
    optimizer.step()
    averages.update()
    return weight.detach().clone()


def test_the_ema_follows_its_formula() -> None:
    weight, optimizer, averages = make(0.3)
    expected = weight.detach().double()
    for n in range(8):
        now = step(weight, optimizer, averages).double()
        keep = min(0.3, (1 + n) / (10 + n)) if n else 0.0
        expected = keep * expected + (1 - keep) * now
    with averages.swapped_in():
        assert torch.allclose(weight.double(), expected, atol=1e-6)
        assert not torch.equal(weight, now.float())
    assert torch.equal(weight, now.float())


@pytest.mark.parametrize("optimizer", ["AdamW", "AdamWScheduleFree", "ProdigyPlusScheduleFree"])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_swapping_in_the_average_changes_no_bit_of_training(optimizer: str, decay: float) -> None:
    ends = []
    for looks in (False, True):
        weight, made, averages = make(decay, optimizer)
        for _ in range(6):
            now = step(weight, made, averages)
            if looks:
                with suppress(KeyboardInterrupt), averages.swapped_in():
                    raise KeyboardInterrupt
                assert torch.equal(weight, now)
        ends.append(step(weight, made, averages))
    assert torch.equal(*ends)


def test_swaps_in_the_average_of_a_schedule_free_optimizer() -> None:
    weight, optimizer, averages = make(0.0, "AdamWScheduleFree")
    for _ in range(20):
        step(weight, optimizer, averages)
    z = optimizer.state[weight]["z"].clone()
    trained = weight.detach().clone()
    with averages.swapped_in():
        # y = 0.1 z + 0.9 x
        assert torch.allclose(weight, (trained - 0.1 * z) / 0.9, atol=1e-5)
    assert torch.equal(weight, trained)
    assert optimizer.param_groups[0]["train_mode"]


def test_the_ema_resumes_from_its_saved_state() -> None:
    weight, optimizer, averages = make(0.9)
    for _ in range(3):
        step(weight, optimizer, averages)
    again, other, resumed = make(0.9)
    with torch.no_grad():
        again.copy_(weight)
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    resumed.load_state(averages.state())
    for made in ((weight, optimizer, averages), (again, other, resumed)):
        for _ in range(3):
            step(*made)
    with averages.swapped_in(), resumed.swapped_in():
        assert torch.equal(weight, again)


def test_a_state_without_the_ema_is_an_error() -> None:
    _, _, averages = make(0.9)
    _, _, none = make(0.0)
    for one, other in ((averages, none), (none, averages)):
        with pytest.raises(ValueError, match="ema_decay"):
            one.load_state(other.state())
