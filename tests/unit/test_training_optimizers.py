"""Optimizers and schedules: separate rates, the arguments that a LoRA needs, and clear words where one cannot work."""

from __future__ import annotations

import builtins
import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from lora_studio.config import Recipe
from lora_studio.errors import InputError
from lora_studio.training.adapters import Adapters, add_adapters
from lora_studio.training.optimizers import (
    current_rates,
    make_lr_scheduler,
    make_optimizer,
    parameter_groups,
    try_optimizer,
)
from tests.tiny_sdxl import make_pipeline


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_pipeline(tmp_path_factory.mktemp("tokenizers"))


def adapt(parts: Any, recipe: Recipe) -> Adapters:
    return add_adapters(
        deepcopy(parts.unet),
        [deepcopy(parts.text_encoder), deepcopy(parts.text_encoder_2)],
        recipe.model_copy(update={"network_dim": 2, "network_alpha": 1, "seed": 0}),
    )


def test_unet_and_text_encoders_have_rates_of_their_own(parts: Any) -> None:
    recipe = Recipe(unet_lr=5e-4, text_encoder_lr=1e-4)
    adapters = adapt(parts, recipe)
    groups = parameter_groups(adapters, recipe)
    assert [(group["name"], group["lr"]) for group in groups] == [("unet", 5e-4), ("text_encoder", 1e-4)]
    counts = {prefix: len(adapters.parameters(prefix)) for prefix in ("unet", "te1", "te2")}
    assert counts["te1"] == counts["te2"] == 3 * 6 * 2  # layers, linear layers in each, A and B
    assert [len(group["params"]) for group in groups] == [counts["unet"], counts["te1"] + counts["te2"]]
    optimizer = make_optimizer(recipe, groups)
    assert current_rates(optimizer) == {"unet": 5e-4, "text_encoder": 1e-4}


@pytest.mark.parametrize(("rates", "models"), [((5e-4, 0), {"unet"}), ((0, 1e-4), {"te1", "te2"})])
def test_a_rate_of_zero_leaves_a_model_as_it_is(parts: Any, rates: tuple[float, float], models: set[str]) -> None:
    recipe = Recipe(unet_lr=rates[0], text_encoder_lr=rates[1])
    adapters = adapt(parts, recipe)
    assert set(adapters.models) == models
    assert len(parameter_groups(adapters, recipe)) == 1


def test_adapters_change_nothing_before_training_and_are_fp32(parts: Any) -> None:
    recipe = Recipe(unet_lr=1e-3, text_encoder_lr=1e-3)
    adapters = adapt(parts, recipe)
    ids = torch.tensor([[1, 2, 3]])
    before, after = (encoder(ids)[0] for encoder in (parts.text_encoder, adapters.models["te1"]))
    assert torch.equal(before, after)
    assert {parameter.dtype for parameter in adapters.parameters("unet", "te1", "te2")} == {torch.float32}
    trained = {id(parameter) for parameter in adapters.parameters("unet", "te1", "te2")}
    for model in adapters.models.values():
        for parameter in model.parameters():
            assert parameter.requires_grad == (id(parameter) in trained)


@pytest.mark.parametrize("name", ["AdamW", "AdamW8bit", "Adafactor", "Prodigy"])
def test_each_optimizer_comes_down_a_valley_at_the_rates_of_its_groups(name: str) -> None:
    rates = (1.0, 1.0) if name == "Prodigy" else (0.02, 0.002)
    recipe = Recipe(optimizer=name, unet_lr=rates[0], text_encoder_lr=rates[1], weight_decay=0)
    fast, slow = (nn.Parameter(torch.ones(64, 64)) for _ in range(2))
    groups = [
        {"name": "unet", "params": [fast], "lr": recipe.unet_lr},
        {"name": "text_encoder", "params": [slow], "lr": recipe.text_encoder_lr},
    ]
    optimizer = make_optimizer(recipe, groups)
    for _ in range(40):
        optimizer.zero_grad()
        ((fast**2).sum() + (slow**2).sum()).backward()
        optimizer.step()
    fast, slow = fast.detach(), slow.detach()
    if name == "Prodigy":
        assert float(fast.mean()) < 0.999
        assert current_rates(optimizer)["unet"] > 1e-6
    else:
        assert 1 - float(fast.mean()) == pytest.approx(0.02 * 40, rel=0.35)
        assert 1 - float(slow.mean()) == pytest.approx(0.002 * 40, rel=0.35)


def test_eight_bits_are_eight_bits() -> None:
    weight = nn.Parameter(torch.ones(64, 64))
    weight.grad = torch.ones_like(weight)
    optimizer = make_optimizer(Recipe(optimizer="AdamW8bit"), [{"params": [weight], "lr": 1e-3}])
    optimizer.step()
    assert optimizer.state[weight]["state1"].dtype == torch.uint8


def test_a_missing_library_is_named_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **rest: Any) -> Any:
        if name.startswith("bitsandbytes"):
            raise ModuleNotFoundError("No module named 'bitsandbytes'", name="bitsandbytes")
        return real(name, *args, **rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="AdamW8bit, but bitsandbytes is not installed") as caught:
        try_optimizer(Recipe(optimizer="AdamW8bit"), torch.device("cpu"))
    assert "pip install bitsandbytes" in caught.value.remedy
    assert "Adafactor" in caught.value.remedy


def test_an_optimizer_that_the_device_cannot_run_is_named_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **rest: Any) -> None:
        raise RuntimeError("CUDA Setup failed\nmore")

    monkeypatch.setattr("bitsandbytes.optim.AdamW8bit.step", broken)
    with pytest.raises(InputError, match="AdamW8bit, but it does not work on this cpu device") as caught:
        try_optimizer(Recipe(optimizer="AdamW8bit"), torch.device("cpu"))
    assert "Adafactor" in caught.value.remedy


@pytest.mark.parametrize("name", ["AdamW", "AdamW8bit", "Adafactor", "Prodigy"])
def test_every_optimizer_works_on_a_cpu(name: str) -> None:
    try_optimizer(Recipe(optimizer=name), torch.device("cpu"))


def rates(steps: int, **recipe: Any) -> list[float]:
    chosen = Recipe(optimizer="AdamW", unet_lr=1.0, **recipe)
    optimizer = make_optimizer(chosen, [{"name": "unet", "params": [nn.Parameter(torch.zeros(1))], "lr": 1.0}])
    schedule = make_lr_scheduler(chosen, optimizer, steps)
    found = []
    for _ in range(steps):
        found.append(current_rates(optimizer)["unet"])
        optimizer.step()
        schedule.step()
    return found


def test_schedules_are_what_their_names_say() -> None:
    assert rates(5, lr_scheduler="constant") == [1] * 5
    assert rates(4, lr_scheduler="linear") == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(6, lr_scheduler="constant_with_warmup", lr_warmup_steps=4) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
    cosine = [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert rates(8, lr_scheduler="cosine") == pytest.approx(cosine)
    restarts = rates(9, lr_scheduler="cosine_with_restarts", lr_scheduler_num_cycles=3)
    assert [restarts[0], restarts[3], restarts[6]] == pytest.approx([1, 1, 1])


def test_a_warm_up_is_never_longer_than_the_run() -> None:
    assert rates(4, lr_scheduler="linear", lr_warmup_steps=100) == pytest.approx([0, 0.25, 0.5, 0.75])
