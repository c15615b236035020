"""Adapters of every network type: shapes, initial values, dropout, and training on a half-precision base."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from lora_studio.errors import InputError
from lora_studio.lora.inject import add_adapters, inject, layer_tensors
from lora_studio.lora.layers import find_target_layers
from lora_studio.lora.shapes import DimAlpha, DoraAxis, layer_dim_alpha, tensor_shapes
from lora_studio.settings.choices import NetworkType
from lora_studio.settings.recipe import Recipe
from lora_studio.training.lora_file import save_lora_file
from lora_studio.training.outputs import Outputs
from lora_studio.training.progress import Progress
from lora_studio.training.reporting.startup import report_dora_axis
from lora_studio.training.resume import restore_state
from lora_studio.training.resume_state import load_state
from lora_studio.training.step import train_step
from lora_studio.workspace.project import Home
from tests.support.events import Events, append_to, ignore, of
from tests.support.networks import NETWORKS, eval_pipeline, in_tiers, metadata_of, recipe_of
from tests.support.tiny_sdxl import make_pipeline, save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, same, start


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXLPipeline:
    return eval_pipeline(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture
def pipe(bare: StableDiffusionXLPipeline) -> StableDiffusionXLPipeline:
    return copy.deepcopy(bare)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    make_images(folder / "images", [(64, 64)])
    save_tiny_sdxl(folder / "base", layers=1)
    return folder


@pytest.mark.parametrize("network", in_tiers(["LoRA", "LoCon", "DoRA", "LoHa", "LoKr"], fast=["LoRA"]))
def test_a_run_with_dropout_resumes_bit_for_bit(network: str, shared: Path, tmp_path: Path) -> None:
    """Two steps, a saved state and two steps of a resumed run equal four steps, also with gradient checkpointing."""
    dropout = {"network_dropout": 0.3} if network in ("LoRA", "LoHa") else {"rank_dropout": 0.3}
    job = make_job(
        shared / "base",
        shared / "images",
        **NETWORKS[network] | dropout | {"epochs": 4, "gradient_checkpointing": network == "DoRA"},
        module_dropout=0.1,
        base_precision={"LoRA": "nf4", "DoRA": "int8"}.get(network, "full"),
    )
    ends = []
    first = start(job, tmp_path / "run", Home(shared / "home"))
    begin = {name: weight.clone() for name, weight in first.adapters.state().items()}
    for step in range(4):
        assert train_step(first, step).read() is not None
        if step == 1:
            Outputs(first, Progress(step=2), ignore, should_stop=lambda: False).save_state()
    ends.append({name: weight.clone() for name, weight in first.adapters.state().items()})
    second = start(job, tmp_path / "run", Home(shared / "home"))
    assert same(second.adapters.state(), begin)
    torch.rand(17)  # other random numbers in the process must have no effect
    state = load_state(tmp_path / "run" / "checkpoints" / "state", on_damage=pytest.fail)
    assert state is not None
    assert restore_state(second, state).step == 2
    for step in (2, 3):
        train_step(second, step)
    assert same(second.adapters.state(), ends[0])
    assert all(not torch.equal(weight, begin[name]) for name, weight in ends[0].items() if not name.startswith("te"))


@pytest.mark.slow
def test_a_dora_run_with_magnitudes_per_output_resumes_with_them(shared: Path, tmp_path: Path) -> None:
    """Earlier versions trained norms of outputs in every format; now only diffusers' format has them."""
    home, settings = Home(shared / "home"), {"network_type": "DoRA", "epochs": 4}
    first = start(
        make_job(shared / "base", shared / "images", **settings, save_format="diffusers"), tmp_path / "run", home
    )
    train_step(first, 0)
    Outputs(first, Progress(step=1), ignore, should_stop=lambda: False).save_state()
    state = load_state(tmp_path / "run" / "checkpoints" / "state", on_damage=pytest.fail)
    assert state is not None
    second = start(make_job(shared / "base", shared / "images", **settings), tmp_path / "run", home)
    assert restore_state(second, state).step == 1
    assert second.adapters.dora_axis is DoraAxis.OUTPUT
    for trainer in (first, second):
        train_step(trainer, 1)
    assert same(second.adapters.state(), first.adapters.state())
    save_lora_file(second, Progress(step=2), tmp_path / "x.safetensors", 1)
    scales = [scale for name, scale in load_file(tmp_path / "x.safetensors").items() if name.endswith("dora_scale")]
    assert {scale.shape[1] for scale in scales} == {1}
    assert json.loads(metadata_of(tmp_path / "x.safetensors")["ss_network_args"])["wd_on_output"] == "True"
    events: Events = []
    report_dora_axis(second.adapters.dora_axis, second.job.recipe, append_to(events))
    report_dora_axis(first.adapters.dora_axis, first.job.recipe, append_to(events))
    report_dora_axis(DoraAxis.INPUT, second.job.recipe, append_to(events))
    assert [event["code"] for event in of(events, "warning")] == ["dora_axis"]


def test_magnitudes_per_input_need_kohyas_format(pipe: StableDiffusionXLPipeline) -> None:
    with pytest.raises(InputError) as caught:
        add_adapters(pipe.unet, [], recipe_of("DoRA diffusers"), axis=DoraAxis.INPUT)
    assert caught.value.code == "save_format"


@pytest.mark.slow
def test_recomputed_activations_have_the_same_dropout(shared: Path, tmp_path: Path) -> None:
    """The recomputed forward pass of gradient checkpointing must draw the same dropout mask as the first."""
    results = []
    for number, checkpointing in enumerate((False, True, False)):
        dropout = 0.0 if number == 2 else 0.3
        job = make_job(
            shared / "base", shared / "images", network_dropout=dropout, gradient_checkpointing=checkpointing
        )
        trainer = start(job, tmp_path / str(number), Home(shared / "home"))
        train_step(trainer, 0)
        results.append(torch.cat([weight.flatten() for weight in trainer.adapters.state().values()]))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=0)
    assert (results[0] - results[2]).abs().max() > 1e-4


@pytest.mark.parametrize("network", ["LoCon", "DoRA", "LoHa", "LoKr"])
def test_adapters_on_a_half_precision_base_are_fp32(network: str, pipe: StableDiffusionXLPipeline) -> None:
    unet = pipe.unet.to(torch.bfloat16)
    adapters = add_adapters(unet, [], recipe_of(network, text_encoder_lr=0))
    unet.train()
    source = torch.Generator().manual_seed(1)
    inputs = torch.randn(1, 4, 8, 8, generator=source).bfloat16(), torch.tensor([500])
    added = {"text_embeds": torch.zeros(1, 24), "time_ids": torch.zeros(1, 6)}
    with torch.autocast("cpu", torch.bfloat16):
        text = torch.randn(1, 77, 40, generator=source)
        out = unet(*inputs, text, added_cond_kwargs=added, return_dict=False)[0]
        out.float().square().mean().backward()
        for _, _, layer in adapters.layers:
            layer.enable_adapters(False)
        plain = unet(*inputs, text, added_cond_kwargs=added, return_dict=False)[0]
    torch.testing.assert_close(out.float(), plain.float(), atol=2e-2, rtol=0)
    weights = adapters.parameters("unet")
    assert {weight.dtype for weight in weights} == {torch.float32}
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in weights)
    assert any(bool(weight.grad.any()) for weight in weights)


def test_a_loha_learns_at_the_rates_of_lycoris() -> None:
    """Compare the changes after 1, 10 and 100 steps of AdamW with a LoHa as LyCORIS initialises it."""
    size, dim, alpha, rate = 160, 8, 4, 1e-4
    torch.manual_seed(1)
    target = torch.randn(size, size)

    def changes(parameters: list[Any], change: Callable[[], Tensor]) -> list[float]:
        optimizer = torch.optim.AdamW(parameters, lr=rate)
        found = []
        for step in range(1, 101):
            optimizer.zero_grad()
            (change() - target).square().mean().backward()
            optimizer.step()
            if step in (1, 10, 100):
                found.append(float(change().detach().norm()))
        return found

    model = nn.Sequential(nn.Linear(size, size, bias=False))
    inject(model, NetworkType.LOHA, {"0": DimAlpha(dim, alpha)}, "default")
    layer = model[0]
    ours = changes(list(layer_tensors(layer).values()), lambda: layer.get_delta_weight("default"))
    stds = ((size, dim, 0.1), (dim, size, 1.0), (size, dim, 0.0), (dim, size, 1.0))
    factors = [nn.Parameter(std * torch.randn(rows, columns)) for rows, columns, std in stds]
    a1, b1, a2, b2 = factors
    assert ours == pytest.approx(changes(factors, lambda: alpha / dim * (a1 @ b1) * (a2 @ b2)), rel=0.1)


SHAPES = {
    "LoRA": {},
    "LoCon": {"network_type": "LoCon", "conv_dim": 3, "conv_alpha": 1},
    "DoRA": {"network_type": "DoRA", "train_layers": "all"},
    "LoHa": {"network_type": "LoHa", "train_layers": "all"},
    "LoHa tucker": {"network_type": "LoHa", "train_layers": "all", "use_tucker": True},
    "LoKr": {"network_type": "LoKr", "train_layers": "all", "network_dim": 1},
    "LoKr tucker": {"network_type": "LoKr", "train_layers": "all", "network_dim": 1, "use_tucker": True},
    "LoKr whole": {"network_type": "LoKr", "network_dim": 64, "lokr_factor": 4},
    "blocks": {"block_dims": "in=2, mid1=6, out0=0", "rank_stabilized": True},
}


@pytest.mark.parametrize("network", SHAPES)
def test_pefts_tensors_have_the_planned_shapes(network: str, tmp_path: Path) -> None:
    pipe = make_pipeline(tmp_path, layers=1)
    recipe = Recipe.parse({"network_dim": 4, "network_alpha": 2} | SHAPES[network])
    encoders = [pipe.text_encoder, pipe.text_encoder_2]
    targets = {(target.model, target.path): target.layer for target in find_target_layers(pipe.unet, encoders)}
    expected = {
        target: layer_dim_alpha(recipe, layer) for target, layer in targets.items() if layer_dim_alpha(recipe, layer)
    }
    adapters = add_adapters(pipe.unet, encoders, recipe)
    assert {(model, path) for model, path, _ in adapters.layers} == set(expected)
    for model, path, layer in adapters.layers:
        size = expected[model, path]
        assert size is not None
        assert layer.scaling["default"] == pytest.approx(size.alpha / size.dim)
        shapes = tensor_shapes(recipe, targets[model, path], size.dim)
        made = {name: tensor.shape.numel() for name, tensor in layer_tensors(layer).items()}
        assert made == {name: torch.Size(shape).numel() for name, shape in shapes.items()}
        assert all(tensor.dtype == torch.float32 and tensor.requires_grad for tensor in layer_tensors(layer).values())
