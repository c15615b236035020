"""Max-norm regularisation against the merged weights of every network type."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from lora_studio.events import StepEvent
from lora_studio.lora.inject import ADAPTER_NAME, AdaptedLayer
from lora_studio.training.optim.max_norm import limit_weight_norms
from lora_studio.workspace.project import Home
from tests.support.events import of
from tests.support.networks import add_random_adapters, metadata_of, recipe_of
from tests.support.tiny_sdxl import make_pipeline, save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, same, train_into, weights_of


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_pipeline(tmp_path_factory.mktemp("tokenizers"), layers=1)


def delta(layer: AdaptedLayer) -> Tensor:
    """Return the merged change of a layer's weight as peft computes it, before a DoRA's magnitudes."""
    if not isinstance(layer, LoraLayer):
        return layer.get_delta_weight(ADAPTER_NAME).detach()
    down, up = layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight
    return layer.scaling[ADAPTER_NAME] * (up.flatten(1) @ down.flatten(1)).detach()


@pytest.mark.parametrize(
    "network", ["LoRA", "LoCon", "DoRA", "LoHa", "LoKr", "LoKr whole", "LoKr tucker", "LoHa tucker"]
)
def test_only_the_layers_above_the_norm_are_scaled_to_it(parts: Any, network: str) -> None:
    adapters = add_random_adapters(deepcopy(parts), recipe_of(network))
    before = [delta(layer) for _, _, layer in adapters.layers]
    norms = torch.stack([change.norm() for change in before])
    limit = float(norms.quantile(0.5, interpolation="midpoint")) * 1.0001
    scaled, mean, largest = limit_weight_norms(adapters, limit).tolist()
    assert 0 < scaled == int((norms > limit).sum()) < len(norms)
    for (_, _, layer), change, norm in zip(adapters.layers, before, norms, strict=True):
        torch.testing.assert_close(delta(layer), change * min(1.0, limit / float(norm)), rtol=1e-4, atol=1e-6)
    expected = norms.clamp(max=limit)
    assert (mean, largest) == pytest.approx((float(expected.mean()), limit), rel=1e-4)


def test_weights_below_the_norm_and_of_zero_keep_every_bit(parts: Any) -> None:
    pipe = deepcopy(parts)
    adapters = add_random_adapters(pipe, recipe_of("LoRA"))
    with torch.no_grad():
        adapters.layers[0][2].lora_B[ADAPTER_NAME].weight.zero_()
    before = {name: weight.clone() for name, weight in adapters.state().items()}
    assert float(limit_weight_norms(adapters, 1e6)[0]) == 0
    assert same(adapters.state(), before)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    make_images(folder / "images", [(64, 64)] * 2)
    save_tiny_sdxl(folder / "base", layers=1)
    return folder


@pytest.mark.slow
def test_a_run_stays_below_the_norm_reports_it_and_resumes_exactly(shared: Path, tmp_path: Path) -> None:
    home, limit = Home(shared / "home"), 1e-3
    job = make_job(shared / "base", shared / "images", epochs=4, unet_lr=1e-2, scale_weight_norms=limit)
    _, events = train_into(job, tmp_path / "whole", home)
    steps = [StepEvent.model_validate(values | {"time": 0.0}) for values in of(events, "step")]
    assert all(step.scaled_layers for step in steps)
    assert all(step.max_weight_norm == pytest.approx(limit, rel=1e-4) for step in steps)
    assert metadata_of(tmp_path / "whole" / "ink.safetensors")["ss_scale_weight_norms"] == str(limit)
    train_into(job, tmp_path / "halves", home, stop_after=2)
    train_into(job, tmp_path / "halves", home, resume=True)
    assert same(weights_of(tmp_path / "halves"), weights_of(tmp_path / "whole"))


def test_it_is_off_by_default_and_the_norms_are_measured_at_some_steps(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_studio.training.step.WEIGHT_NORM_STEPS", 3)
    job = make_job(shared / "base", shared / "images", epochs=4)
    _, events = train_into(job, tmp_path, Home(shared / "home"))
    steps = of(events, "step")
    assert not any("scaled_layers" in values for values in steps)
    measured = {values["step"]: values["mean_weight_norm"] for values in steps if "mean_weight_norm" in values}
    assert list(measured) == [1, 3, 4]
    assert 0 < measured[1] < steps[-1]["mean_weight_norm"] < steps[-1]["max_weight_norm"]
    assert metadata_of(tmp_path / "ink.safetensors")["ss_scale_weight_norms"] == "None"
