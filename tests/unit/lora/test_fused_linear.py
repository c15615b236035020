"""The fused LoRA layer and the weights in one piece: the same numbers as peft's, in fewer operations."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from lora_studio.lora.fused_linear import FusedLora, FusedLoraLinear, _FusedLoraProduct
from lora_studio.lora.inject import Adapters, add_adapters
from lora_studio.settings.choices import Optimizer, Scheduler
from lora_studio.settings.recipe import Recipe
from lora_studio.training.optim.flat_params import FlatParameters, ParameterLayout
from lora_studio.training.optim.optimizers import make_optimizer, parameter_groups, parameter_layout
from lora_studio.training.run import Run
from lora_studio.training.speed.attention import PlainAttention, use_plain_attention
from lora_studio.training.step import train_step
from lora_studio.workspace.project import Home
from tests.support.counting import CountedOperations, HostReads
from tests.support.step_operations import count_studio
from tests.support.tiny_sdxl import make_pipeline, save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, start

INPUTS, OUTPUTS, RANK = 12, 20, 3


def layer(*, fused: bool, bias: bool = True, dtype: torch.dtype = torch.float32, **config: Any) -> Linear:
    """A LoRA layer of peft's, or ours, with the same numbers; none of them zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, OUTPUTS, bias=bias)).requires_grad_(False)
    chosen = LoraConfig(r=RANK, lora_alpha=5, target_modules=["0"], init_lora_weights=False, **config)
    if fused:
        chosen._register_custom_module({nn.Linear: FusedLoraLinear})
    inject_adapter_in_model(chosen, model)
    found: Linear = model.to(dtype)[0]
    if isinstance(found, FusedLoraLinear) and found.is_fusable():
        a, b = factors(found)
        found.fuse(a, b, (torch.zeros_like(a), torch.zeros_like(b)))
    return found


def factors(module: Linear) -> tuple[nn.Parameter, nn.Parameter]:
    return module.lora_A["default"].weight, module.lora_B["default"].weight


def answers(module: Linear, x: Tensor) -> list[Tensor]:
    """The layer's answer, and the gradients of its sines for x, A and B."""
    x = x.clone().requires_grad_()
    y = module(x)
    y.float().sin().sum().backward()
    assert x.grad is not None
    if isinstance(module, FusedLoraLinear):
        assert module.fused_lora
        return [y, x.grad, *module.fused_lora.grad_buffers]
    return [y, x.grad, *(weight.grad for weight in factors(module) if weight.grad is not None)]


@pytest.mark.parametrize("shape", [(7, INPUTS), (2, 5, INPUTS)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_fused_layer_gives_what_pefts_gives(shape: tuple[int, ...], bias: bool) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    ours, theirs = layer(fused=True, bias=bias), layer(fused=False, bias=bias)
    for mine, other in zip(answers(ours, x), answers(theirs, x), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)


def test_the_gradients_are_those_of_the_formula() -> None:
    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=source)

    source = torch.Generator().manual_seed(3)
    x, a, b = (values.requires_grad_() for values in (random(2, 4, 5), random(3, 5), random(6, 3)))
    base = nn.Linear(5, 6).double().requires_grad_(False)
    fused_lora = FusedLora(base, a, b, 0.7, (random(3, 5), random(6, 3)))
    before = [sink.clone() for sink in fused_lora.grad_buffers]
    grad = random(2, 4, 6)
    [for_x] = torch.autograd.grad(_FusedLoraProduct.apply(x, None, fused_lora), x, grad)
    expected = torch.autograd.grad(base(x) + 0.7 * (x @ a.T) @ b.T, (x, a, b), grad)
    added = [sink - old for sink, old in zip(fused_lora.grad_buffers, before, strict=True)]
    for mine, other in zip([for_x, *added], expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-12)


def test_weights_learn_where_the_input_takes_no_gradient() -> None:
    x = torch.randn((7, INPUTS), generator=torch.Generator().manual_seed(2))
    ours, theirs = layer(fused=True), layer(fused=False)
    ours(x).sin().sum().backward()
    for mine, other in zip(ours.fused_lora.grad_buffers, answers(theirs, x)[2:], strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)


def test_under_autocast_it_computes_in_half_precision() -> None:
    x = torch.randn((7, INPUTS), generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        mine, other = (answers(layer(fused=fused, dtype=torch.bfloat16), x) for fused in (True, False))
    assert mine[0].dtype == other[0].dtype == torch.bfloat16
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("config", "change"),
    [
        ({"lora_dropout": 0.5}, lambda module: None),
        ({"use_dora": True}, lambda module: None),
        ({"lora_bias": True}, lambda module: None),
        ({}, lambda module: module.enable_adapters(enabled=False)),
        ({}, lambda module: module.merge()),
    ],
    ids=["dropout", "DoRA", "bias", "switched off", "merged"],
)
def test_what_it_cannot_fuse_is_left_to_peft(config: dict[str, Any], change: Any) -> None:
    x = torch.randn((7, INPUTS), generator=torch.Generator().manual_seed(2))
    ours, theirs = layer(fused=True, **config), layer(fused=False, **config)
    for module in (ours, theirs):
        change(module)
    torch.manual_seed(1)
    expected = theirs(x)
    torch.manual_seed(1)
    assert torch.equal(ours(x), expected)


def test_a_step_at_sdxls_real_size_is_few_operations_and_little_memory() -> None:
    """UNet, 1024 px, batch 1, rank 32; with peft's layers it is 10,656 operations."""
    counted = count_studio()
    assert counted.operations <= 6850
    assert counted.saved <= 5.5 * 2**30


def test_plain_attention_is_diffusers_attention() -> None:
    """To the states themselves and to a text."""
    torch.manual_seed(4)
    for text in (None, torch.randn(2, 7, 12)):
        attn = Attention(16, None if text is None else 12, heads=2, dim_head=8)
        x = torch.randn(2, 5, 16)
        expected = attn(x, text)
        attn.set_processor(PlainAttention())
        torch.testing.assert_close(attn(x, text), expected, atol=1e-5, rtol=1e-4)
        mask = torch.zeros(2, 1, 5 if text is None else 7)
        torch.testing.assert_close(attn(x, text, mask), expected, atol=1e-5, rtol=1e-4)


def test_attention_that_is_not_plain_keeps_its_own(parts: Any) -> None:
    unet = deepcopy(parts.unet)
    odd = next(module for module in unet.modules() if isinstance(module, Attention))
    odd.residual_connection = True
    use_plain_attention(unet)
    kinds = [type(module.processor) for module in unet.modules() if isinstance(module, Attention)]
    assert kinds[0] is not PlainAttention
    assert set(kinds[1:]) == {PlainAttention}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_pipeline(tmp_path_factory.mktemp("tokenizers"), layers=1)


NETWORK = {"network_dim": 4, "network_alpha": 2, "unet_lr": 1e-2, "text_encoder_lr": 0.0, "weight_decay": 0.01}


@pytest.mark.parametrize("name", list(Optimizer))
def test_weights_in_one_piece_learn_as_each_by_itself(parts: Any, name: Optimizer) -> None:
    """Gradients are made up: the point is that every optimizer gets the same ones and does the same with them."""
    rate = 1.0 if name in (Optimizer.PRODIGY, Optimizer.PRODIGY_PLUS) else 1e-2
    recipe = Recipe.parse(NETWORK | {"optimizer": name, "unet_lr": rate})
    ends = []
    for whole in (False, True):
        adapters = add_adapters(deepcopy(parts.unet), [], recipe)
        groups = parameter_groups(adapters, recipe)
        leaves = adapters.parameters("unet")
        weights = FlatParameters(groups, parameter_layout(recipe), adapters, torch.float32) if whole else None
        optimizer = make_optimizer(recipe, weights.groups if weights else groups)
        for step in range(3):
            source = torch.Generator().manual_seed(step)
            for leaf in leaves:
                leaf.grad = torch.randn(leaf.shape, generator=source)
            if weights:
                weights.zero_gradients()
                give(adapters)
                weights.accumulate_gradients()
            optimizer.step()
        ends.append(adapters.state())
    for weight, other in zip(ends[0].values(), ends[1].values(), strict=True):
        if "8bit" in name.value:  # blocks of 256 numbers share a scale; those of small matrices are fp32 by themselves
            assert (weight - other).abs().mean() < 1e-3
        else:
            torch.testing.assert_close(weight, other, atol=2e-6, rtol=1e-4)


def test_each_optimizer_gets_what_it_can_work_with() -> None:
    assert parameter_layout(Recipe(optimizer=Optimizer.ADAMW)) is ParameterLayout.FLAT
    assert parameter_layout(Recipe(optimizer=Optimizer.ADAFACTOR)) is ParameterLayout.STACKED
    relative = Recipe(optimizer=Optimizer.ADAFACTOR, lr_scheduler=Scheduler.ADAFACTOR)
    assert parameter_layout(relative) is ParameterLayout.SEPARATE


def give(adapters: Adapters) -> None:
    """Add the gradients that lie at the weights to where the fused layers have theirs."""
    for _, _, layer in adapters.layers:
        for weight, sink in zip(
            (layer.lora_A["default"].weight, layer.lora_B["default"].weight), layer.fused_lora.grad_buffers, strict=True
        ):
            sink += weight.grad
            weight.grad = None


@pytest.mark.parametrize("network", ["LoRA", "DoRA"])
def test_gradients_of_several_passes_are_those_of_pefts_layers(parts: Any, network: str) -> None:
    """Two batches one after the other, of which one alone counts after the gradients were forgotten."""

    def backward(unet: UNet2DConditionModel, seed: int) -> None:
        source = torch.Generator().manual_seed(seed)
        noisy, text = (torch.randn(shape, generator=source) for shape in ((1, 4, 8, 8), (1, 7, 40)))
        added = {"text_embeds": torch.randn(1, 24, generator=source), "time_ids": torch.ones(1, 6)}
        unet(noisy, 5, text, added_cond_kwargs=added).sample.sin().sum().backward()

    recipe = Recipe.parse(NETWORK | {"network_type": network})
    plain, ours = deepcopy(parts.unet), deepcopy(parts.unet)
    theirs, adapters = (add_adapters(unet, [], recipe) for unet in (plain, ours))
    for adapter in (theirs, adapters):
        with torch.no_grad():
            for number, weight in enumerate(adapter.parameters("unet")):
                weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) / 10
    weights = FlatParameters(parameter_groups(adapters, recipe), ParameterLayout.FLAT, adapters, torch.float32)
    use_plain_attention(ours)
    for seeds in ([1, 2], [3]):
        weights.zero_gradients()
        for weight in theirs.parameters("unet"):
            weight.grad = None
        for seed in seeds:
            backward(plain, seed)
            backward(ours, seed)
            weights.accumulate_gradients()
        expected = {name: weight.grad for name, weight in zip(theirs.state(), theirs.parameters("unet"), strict=True)}
        assert not any(weight.grad is not None for weight in adapters.parameters("unet"))
        [flat], [gradient] = weights.flat, weights.gradients
        for name, weight in zip(adapters.state(), adapters.parameters("unet"), strict=True):
            start = (weight.data_ptr() - flat.data_ptr()) // 4
            found = gradient[start : start + weight.numel()].view_as(weight)
            torch.testing.assert_close(found, expected[name], atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    make_images(folder / "images", [(64, 64)] * 4)
    save_tiny_sdxl(folder / "base", layers=1)
    return folder


@pytest.fixture
def run(shared: Path, tmp_path: Path) -> Run:
    job = make_job(shared / "base", shared / "images", mixed_precision="bf16", unet_lr=1e-5)
    return start(job, tmp_path, Home(shared / "home"))


def test_in_half_precision_small_steps_are_not_lost(run: Run) -> None:
    """The layers compute with bf16 copies, which a step of 1e-5 rarely moves; the fp32 weights take every step."""
    assert run.weights.half_only
    layers = [module for module in run.base.unet.modules() if isinstance(module, FusedLoraLinear)]
    before = {name: weight.clone() for name, weight in run.adapters.state().items()}
    for run.step in range(3):
        assert train_step(run).read() is not None
    moved = [(weight - before[name]).abs().max() for name, weight in run.adapters.state().items() if name[-1] == "A"]
    assert all(0 < float(change) < 1e-4 for change in moved)
    for module in layers:
        for copy, weight in zip(
            (module.fused_lora.a, module.fused_lora.b), (module.lora_A, module.lora_B), strict=True
        ):
            assert torch.equal(copy, weight["default"].weight.bfloat16())


def test_a_step_does_not_wait_and_a_bad_one_changes_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU with AdamW: no number goes to the host before it is read, yet what is not finite is left out."""
    train_step(run)
    run.__dict__["updates_without_sync"] = True
    run.optimizer.found_inf = None
    with HostReads() as reads:
        taken = train_step(run)
    assert reads.modules <= {"objective", "cache"}  # random numbers and files, before anything is on the device
    with CountedOperations() as update:
        run.optimizer.step()
    assert update.total <= 5
    assert taken.read() == pytest.approx(1.0, abs=0.9)
    before = run.adapters.state(), deepcopy(run.optimizer.state_dict()["state"])
    monkeypatch.setitem(run.collator.__dict__, "loss_weights", torch.full((1000,), float("nan")))
    assert train_step(run).read() is None
    for one, two in zip(before[0].values(), run.adapters.state().values(), strict=True):
        assert torch.equal(one, two)
    for number, values in run.optimizer.state_dict()["state"].items():
        assert all(torch.equal(values[name], before[1][number][name]) for name in values)
