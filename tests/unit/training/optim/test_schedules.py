"""Learning rate schedules against their formulas, and properties of all of them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lora_studio.errors import ConfigError
from lora_studio.planning.steps import warmup_steps
from lora_studio.settings.choices import Scheduler
from lora_studio.settings.recipe import Recipe
from lora_studio.training.optim.optimizers import learning_rates, make_optimizer
from lora_studio.training.optim.schedules import (
    check_lr_scheduler,
    continue_schedule,
    continued_factor,
    make_lr_scheduler,
)

FALLING = ("linear", "cosine", "cosine_with_restarts", "polynomial", "rex")
SHAPES = [item.value for item in Scheduler if item is not Scheduler.ADAFACTOR]


def factors(steps: int, **recipe: Any) -> list[float]:
    """Return the learning rate factor of every step and of the step after the last."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 1.0}])
    lambdas = make_lr_scheduler(Recipe.parse(recipe), optimizer, steps).lr_lambdas
    return [float(lambdas[0](step)) for step in range(steps + 1)]


def rates(steps: int, **recipe: Any) -> list[float]:
    """Return the learning rates of a run."""
    chosen = Recipe.parse({"optimizer": "AdamW", "unet_lr": 1.0, **recipe})
    optimizer = make_optimizer(chosen, [{"name": "unet", "params": [nn.Parameter(torch.zeros(1))], "lr": 1.0}])
    schedule = make_lr_scheduler(chosen, optimizer, steps)
    found = []
    for _ in range(steps):
        found.append(learning_rates(optimizer)["unet"])
        optimizer.step()
        schedule.step()
    return found


def test_learning_rates_of_each_schedule() -> None:
    assert rates(5, lr_scheduler="constant") == [1] * 5
    assert rates(4, lr_scheduler="linear") == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(6, lr_scheduler="constant_with_warmup", lr_warmup_steps=4) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
    cosine = [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert rates(8, lr_scheduler="cosine") == pytest.approx(cosine)
    restarts = rates(9, lr_scheduler="cosine_with_restarts", lr_scheduler_num_cycles=3)
    assert [restarts[0], restarts[3], restarts[6]] == pytest.approx([1, 1, 1])


def test_polynomial_and_rex_follow_their_formulas() -> None:
    squares = [(1 - step / 8) ** 2 for step in range(8)]
    assert rates(8, lr_scheduler="polynomial", lr_scheduler_power=2) == pytest.approx(squares)
    assert rates(4, lr_scheduler="polynomial") == pytest.approx([1, 0.75, 0.5, 0.25])
    # the paper's form of REX, with T = 4 steps
    paper = [(1 - t / 4) / (1 / 2 + 1 / 2 * (1 - t / 4)) for t in range(4)]
    assert rates(4, lr_scheduler="rex") == pytest.approx(paper)
    assert paper == pytest.approx([1, 6 / 7, 2 / 3, 2 / 5])
    assert rates(6, lr_scheduler="rex", lr_warmup_steps=2) == pytest.approx([0, 0.5, *paper])


def test_a_warm_up_below_1_is_a_fraction_of_the_run() -> None:
    assert [warmup_steps(*case) for case in ((0, 100), (0.05, 100), (0.5, 3), (0.999, 2), (1, 100), (30, 20))] == [
        0, 5, 1, 1, 1, 20,
    ]  # fmt: skip
    share = rates(20, lr_scheduler="linear", lr_warmup_steps=0.25)
    assert share == rates(20, lr_scheduler="linear", lr_warmup_steps=5)
    assert share[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


@given(
    shape=st.sampled_from(SHAPES),
    steps=st.integers(1, 60),
    warmup=st.one_of(st.integers(0, 80), st.floats(0, 0.99)),
    cycles=st.integers(1, 6),
    power=st.floats(0.1, 5),
)
def test_every_schedule_warms_up_and_stays_within_0_and_1(
    shape: str, steps: int, warmup: float, cycles: int, power: float
) -> None:
    found = factors(
        steps,
        lr_scheduler=shape,
        lr_warmup_steps=warmup,
        lr_scheduler_num_cycles=cycles,
        lr_scheduler_power=power,
    )
    assert all(0 <= factor <= 1 for factor in found)
    rise = 0 if shape == "constant" else warmup_steps(warmup, steps)
    assert found[:rise] == pytest.approx([step / rise for step in range(rise)])
    if rise < steps:
        assert found[rise] == pytest.approx(1)
    if shape in FALLING:
        assert rise == steps or found[-1] == pytest.approx(0, abs=1e-6)
        if shape != "cosine_with_restarts":
            after = found[rise:]
            assert all(later <= earlier + 1e-9 for earlier, later in pairwise(after))
    else:
        assert found[rise:] == [1] * (steps + 1 - rise)


@pytest.mark.parametrize("warmup", [0, 3])
def test_adafactors_own_schedule_ignores_the_recipes_rate(warmup: int) -> None:
    """Shazeer and Stern 2018: min(1e-2, 1 / sqrt(t)), or min(1e-6 t, 1 / sqrt(t)) with a warm-up, times the RMS."""
    steps = {}
    for rate in (1e-4, 1e-2):
        recipe = Recipe.parse(
            {"lr_scheduler": "adafactor", "unet_lr": rate, "weight_decay": 0, "lr_warmup_steps": warmup}
        )
        weight = nn.Parameter(torch.full((8, 8), 2.0))
        optimizer = make_optimizer(recipe, [{"name": "unet", "params": [weight], "lr": rate}])
        schedule = make_lr_scheduler(recipe, optimizer, 200)
        told, moved = [], []
        for _ in range(200):
            before = weight.detach().clone()
            told.append(learning_rates(optimizer)["unet"])
            weight.grad = torch.ones_like(weight)
            optimizer.step()
            schedule.step()
            moved.append(float((before - weight).mean() / before.mean()))
        steps[rate] = moved
        expected = [min(1e-6 * t if warmup else 1e-2, 1 / math.sqrt(t)) for t in range(1, 201)]
        assert told == pytest.approx(expected)
        assert moved == pytest.approx(expected, rel=0.2 if warmup else 1e-3)
    assert steps[1e-4] == steps[1e-2]


def test_a_warm_up_is_never_longer_than_the_run() -> None:
    assert rates(4, lr_scheduler="linear", lr_warmup_steps=100) == pytest.approx([0, 0.25, 0.5, 0.75])


@pytest.mark.parametrize("warmup", [0, 4])
def test_cosine_ends_at_its_minimum(warmup: int) -> None:
    found = factors(24, lr_scheduler="cosine", lr_scheduler_min_lr_ratio=0.1, lr_warmup_steps=warmup)
    assert found[:warmup] == pytest.approx([step / 4 for step in range(warmup)])
    for step in range(warmup, 25):
        place = (step - warmup) / (24 - warmup)
        assert found[step] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * place)) / 2)
    assert factors(24, lr_scheduler="cosine", lr_scheduler_min_lr_ratio=0) == factors(24, lr_scheduler="cosine")


@pytest.mark.parametrize("name", ["CosineAnnealingLR", "torch.optim.lr_scheduler.CosineAnnealingLR"])
def test_a_scheduler_class_is_stepped_with_its_arguments(name: str) -> None:
    recipe = {"lr_scheduler_type": name, "lr_scheduler_args": '"T_max=5" "eta_min=0.2"'}
    check_lr_scheduler(Recipe.parse(recipe))
    expected = [0.2 + 0.8 * (1 + math.cos(math.pi * step / 5)) / 2 for step in range(12)]
    assert rates(12, **recipe) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("CosineAnnealingLR", []),
        ("CosineAnnealingLR", ["T_max=5", "speed=2"]),
        ("CosineAnnealingLR", ["T_max=fast"]),
        ("ReduceLROnPlateau", []),
        ("NoSuchLR", []),
        ("no_such_library.SomeLR", []),
        ("os.system", []),
        ("torch.nn.Linear", ["in_features=1", "out_features=1"]),
    ],
)
def test_what_is_missing_or_wrong_in_a_scheduler_class_is_named(name: str, arguments: list[str]) -> None:
    recipe = Recipe.parse({"lr_scheduler_type": name, "lr_scheduler_args": arguments})
    with pytest.raises(ConfigError) as caught:
        check_lr_scheduler(recipe)
    (problem,) = caught.value.problems
    assert problem.startswith(("lr_scheduler_type", "lr_scheduler_args"))
    assert name in problem or arguments[-1] in problem


def continued(factor: float, steps: int, **recipe: Any) -> list[float]:
    """Return the factors of a continued run and that of the step after the last."""
    planned = continued_factor(Recipe.parse(recipe), factor, steps)
    return [planned(step) for step in range(steps + 1)]


@pytest.mark.parametrize("shape", FALLING)
def test_a_finished_schedule_rises_to_half_the_rates_and_falls_again(shape: str) -> None:
    found = continued(0.0, 200, lr_scheduler=shape, lr_scheduler_num_cycles=1)
    assert found[0] == pytest.approx(0.5 / 21)
    assert max(found) == found[20] == pytest.approx(0.5)
    assert all(after >= before for before, after in pairwise(found[:21]))
    assert all(after < before for before, after in pairwise(found[20:]))
    assert found[-1] == pytest.approx(0, abs=1e-12)


def test_a_schedule_above_half_the_rates_falls_from_there() -> None:
    found = continued(0.75, 100, lr_scheduler="cosine", lr_scheduler_min_lr_ratio=0.1)
    assert found[0] == 0.75
    assert all(after < before for before, after in pairwise(found))
    assert found[-1] == pytest.approx(0.1)


def test_a_constant_schedule_only_finishes_its_warmup() -> None:
    assert continued(1.0, 50, lr_scheduler="constant") == [1.0] * 51
    found = continued(0.4, 50, lr_scheduler="constant_with_warmup", lr_warmup_steps=100)
    assert found[0] == pytest.approx(0.5)
    assert found[5:] == [1.0] * 46


def test_the_rates_of_a_continued_run_are_the_same_after_a_resume() -> None:
    recipe = Recipe.parse({"lr_scheduler": "cosine", "optimizer": "AdamW"})

    def scheduler_at(step: int) -> Any:
        optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": 2.0}])
        scheduler = make_lr_scheduler(recipe, optimizer, 60)
        scheduler.last_epoch = step
        continue_schedule(scheduler, recipe, step=40, factor=0.0, total_steps=60)
        return scheduler

    whole, found = scheduler_at(40), []
    for step in range(40, 60):
        found.append(whole.get_last_lr()[0])
        assert scheduler_at(step).get_last_lr() == pytest.approx(whole.get_last_lr())
        whole.optimizer.step()
        whole.step()
    assert max(found) == pytest.approx(1.0)
