"""Every network type, from training over a file to a picture: the same numbers in memory, here, and in diffusers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_studio.errors import ConfigError
from lora_studio.lora.header import read_lora_header
from lora_studio.lora.inject import Adapters, add_adapters, layer_tensors
from lora_studio.lora.layers import TargetLayer, find_target_layers
from lora_studio.lora.read import read_layers
from lora_studio.lora.shapes import Layer, LayerRole, layer_dim_alpha, tensor_shapes
from lora_studio.lora.write import adapter_metadata, lora_tensors, save_lora
from lora_studio.sampling.adapter import apply_lora
from lora_studio.settings.choices import SaveFormat
from lora_studio.settings.job_specs import job_from_toml, job_to_toml
from lora_studio.settings.recipe import Recipe
from lora_studio.training.loop import restore_run, save_lora_file
from lora_studio.training.resume_state import load_state
from lora_studio.training.step import train_step
from lora_studio.training.warm_start import load_network_weights, network_weights_errors
from lora_studio.workspace.project import Home
from tests.support.tiny_sdxl import make_pipeline, save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, same, start

SMALL = {"network_dim": 4, "network_alpha": 2}
NETWORKS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoCon": {"network_type": "LoCon", "conv_dim": 2, "conv_alpha": 1},
    "DoRA": {"network_type": "DoRA", "train_layers": "all"},
    "LoHa": {"network_type": "LoHa", "train_layers": "all"},
    "LoKr": {"network_type": "LoKr", "train_layers": "all", "network_dim": 1},
    "LoKr whole": {"network_type": "LoKr", "network_dim": 64, "lokr_factor": 4},
    "rsLoRA blocks": {"rank_stabilized": True, "block_dims": "in=2, mid=8, out0=0"},
    "LoCon diffusers": {"network_type": "LoCon", "conv_dim": 2, "rank_stabilized": True, "save_format": "diffusers"},
    "DoRA diffusers": {"network_type": "DoRA", "train_layers": "all", "save_format": "diffusers"},
}


def recipe_of(network: str, **more: Any) -> Recipe:
    return Recipe.parse(SMALL | NETWORKS[network] | more)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXLPipeline:
    pipe = make_pipeline(tmp_path_factory.mktemp("tokenizers"), layers=1)
    for model in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2):
        model.eval()
    return pipe


@pytest.fixture
def pipe(bare: StableDiffusionXLPipeline) -> StableDiffusionXLPipeline:
    return copy.deepcopy(bare)


def answer(pipe: StableDiffusionXLPipeline) -> Tensor:
    """What the UNet says of a noisy picture and a text, through both text encoders."""
    source = torch.Generator().manual_seed(1)
    picture = torch.randn(1, 4, 8, 8, generator=source)
    ids = torch.randint(0, 400, (1, 77), generator=source)
    with torch.no_grad():
        first = pipe.text_encoder(ids, output_hidden_states=True)
        second = pipe.text_encoder_2(ids, output_hidden_states=True)
        hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        added = {"text_embeds": second[0], "time_ids": torch.zeros(1, 6)}
        out: Tensor = pipe.unet(picture, torch.tensor([500]), hidden, added_cond_kwargs=added, return_dict=False)[0]
        return out


def trained(pipe: StableDiffusionXLPipeline, recipe: Recipe) -> Adapters:
    """Adapters whose weights are as if they had learned something."""
    adapters = add_adapters(pipe.unet, [pipe.text_encoder, pipe.text_encoder_2], recipe)
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, _, layer in adapters.layers:
            for name, weight in layer_tensors(layer).items():
                noise = torch.randn(weight.shape, generator=source)
                weight.copy_(weight * (1 + 0.3 * noise) if name == "dora_scale" else 0.3 * noise)
    return adapters


def write(path: Path, pipe: StableDiffusionXLPipeline, adapters: Adapters, recipe: Recipe) -> Path:
    metadata = adapter_metadata(adapters) if recipe.save_format is SaveFormat.DIFFUSERS else {}
    save_lora(path, lora_tensors(adapters, pipe.unet, torch.float32, recipe.save_format), metadata)
    return path


@pytest.mark.parametrize("network", NETWORKS)
def test_a_file_gives_what_was_in_memory(
    network: str, bare: StableDiffusionXLPipeline, pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    recipe, other = recipe_of(network), copy.deepcopy(bare)
    before = answer(bare)
    add_adapters(other.unet, [other.text_encoder, other.text_encoder_2], recipe)
    torch.testing.assert_close(answer(other), before, atol=1e-6, rtol=0)  # nothing is learned yet
    other = copy.deepcopy(bare)
    adapters = trained(other, recipe)
    mine = answer(other)
    lora = read_lora_header(write(tmp_path / "x.safetensors", other, adapters, recipe))
    assert (mine - before).abs().max() > 0.1
    with apply_lora(pipe, lora) as adapter:
        assert adapter.matched == adapter.total == len(adapters.layers)
        torch.testing.assert_close(answer(pipe), mine, atol=1e-5, rtol=1e-5)
        adapter.set_strength(0)
        assert torch.equal(answer(pipe), before)
    assert torch.equal(answer(pipe), before)
    assert same(pipe.unet.state_dict(), bare.unet.state_dict())
    if network in ("LoRA", "LoCon", "LoCon diffusers", "DoRA diffusers"):
        pipe.load_lora_weights(str(tmp_path), weight_name="x.safetensors")
        torch.testing.assert_close(answer(pipe), mine, atol=1e-5, rtol=1e-5)


def test_half_precision_files_keep_the_scale(bare: StableDiffusionXLPipeline) -> None:
    """Alpha of a rank-stabilised LoRA is no number of fp16; what rounding takes from it, a weight gets."""
    other = copy.deepcopy(bare)
    adapters = trained(other, recipe_of("LoRA", network_dim=7, network_alpha=3, rank_stabilized=True))
    tensors = lora_tensors(adapters, other.unet, torch.float16)
    name, layer = "lora_unet_middle_block_1_proj_in", other.unet.mid_block.attentions[0].proj_in
    up, down = (tensors[f"{name}.lora_{part}.weight"].float() for part in ("up", "down"))
    kept = float(tensors[f"{name}.alpha"]) / 7 * up @ down
    exact = 3 / 7**0.5 * layer.lora_B["default"].weight.detach() @ layer.lora_A["default"].weight.detach()
    assert float(tensors[f"{name}.alpha"]) != 3 * 7**0.5
    torch.testing.assert_close(kept, exact, atol=2e-3 * float(exact.abs().max()), rtol=0)


# Layers of the file that is made by hand: a linear one, a convolution, a square one and a text encoder's.
LINEAR = (
    "unet",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k",
)
CONV = ("unet", "up_blocks.0.resnets.0.conv1", "lora_unet_output_blocks_0_0_in_layers_2")
DOWN = ("unet", "down_blocks.1.downsamplers.0.conv", "lora_unet_input_blocks_4_0_op")
TEXT = ("te1", "encoder.layers.0.mlp.fc1", "lora_te1_text_model_encoder_layers_0_mlp_fc1")


def lora(weight: Tensor, noise: Any) -> tuple[dict[str, Tensor], np.ndarray]:
    down, up = noise(2, *weight.shape[1:]), noise(weight.shape[0], 2, *[1] * (weight.dim() - 2))
    delta = up.flatten(1).numpy() @ down.flatten(1).numpy()
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(3.0)}, 1.5 * delta


def tucker(weight: Tensor, noise: Any) -> tuple[dict[str, Tensor], np.ndarray]:
    if weight.dim() == 2:
        return lora(weight, noise)
    down, core, up = noise(2, weight.shape[1], 1, 1), noise(2, 2, 3, 3), noise(weight.shape[0], 2, 1, 1)
    delta = np.einsum("om,mnkl,ni->oikl", up.flatten(1), core, down.flatten(1))
    return {"lora_down.weight": down, "lora_mid.weight": core, "lora_up.weight": up}, delta


def loha(weight: Tensor, noise: Any) -> tuple[dict[str, Tensor], np.ndarray]:
    rows, columns = weight.flatten(1).shape
    parts = {
        f"hada_w{n}_{side}": noise(*shape) for n in "12" for side, shape in (("a", (rows, 2)), ("b", (2, columns)))
    }
    first, second = (parts[f"hada_w{n}_a"].numpy() @ parts[f"hada_w{n}_b"].numpy() for n in "12")
    return parts | {"alpha": torch.tensor(4.0)}, 2 * first * second


def loha_tucker(weight: Tensor, noise: Any) -> tuple[dict[str, Tensor], np.ndarray]:
    if weight.dim() == 2:
        return loha(weight, noise)
    parts, products = {}, []
    for n in "12":
        core, left, right = noise(2, 2, 3, 3), noise(2, weight.shape[0]), noise(2, weight.shape[1])
        parts |= {f"hada_t{n}": core, f"hada_w{n}_a": left, f"hada_w{n}_b": right}
        products.append(np.einsum("ijkl,jr,ip->prkl", core, right, left))
    return parts, products[0] * products[1]


def lokr(weight: Tensor, noise: Any) -> tuple[dict[str, Tensor], np.ndarray]:
    small, large = noise(4, 2), noise(weight.shape[0] // 4, weight.shape[1] // 2, *weight.shape[2:])
    delta = np.einsum("ac,bd...->abcd...", small, large).reshape(weight.shape)
    return {"lokr_w1": small, "lokr_w2": large, "alpha": torch.tensor(1.0)}, delta  # whole matrices: alpha is nothing


def lokr_low(weight: Tensor, noise: Any) -> tuple[dict[str, Tensor], np.ndarray]:
    rows, columns = weight.shape[0] // 4, weight[0].numel() // 2
    parts = {
        "lokr_w1_a": noise(4, 3),
        "lokr_w1_b": noise(3, 2),
        "lokr_w2_a": noise(rows, 3),
        "lokr_w2_b": noise(3, columns),
    }
    small, large = (parts[f"lokr_w{n}_a"].numpy() @ parts[f"lokr_w{n}_b"].numpy() for n in "12")
    return parts | {"alpha": torch.tensor(6.0)}, 2 * np.kron(small, large)


KINDS = {kind.__name__: kind for kind in (lora, tucker, loha, loha_tucker, lokr, lokr_low)}


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [
        *((kind, "plain") for kind in KINDS),
        *((kind, lengths) for kind in ("lora", "loha") for lengths in ("outputs", "inputs")),
        ("lokr_low", "outputs"),
    ],
)
def test_other_programs_files_change_the_weights_by_their_formula(
    kind: str, lengths: str, bare: StableDiffusionXLPipeline, pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    """W + strength (W' - W), worked out with numpy; W' has the lengths (dora_scale) where the file gives them."""
    source = torch.Generator().manual_seed(5)
    merged, tensors = copy.deepcopy(bare), {}
    for model, path, name in (LINEAR, CONV, DOWN, TEXT):
        layer = {"unet": merged.unet, "te1": merged.text_encoder}[model].get_submodule(path)
        weight = layer.weight.data
        parts, delta = KINDS[kind](weight, lambda *shape: 0.5 * torch.randn(shape, generator=source))
        whole = weight.numpy() + delta.reshape(weight.shape)
        if lengths != "plain":
            axes = tuple(axis for axis in range(weight.dim()) if axis != (0 if lengths == "outputs" else 1))
            wanted = np.sqrt((weight.numpy() ** 2).sum(axis=axes, keepdims=True)) * 1.3
            whole = whole / np.sqrt((whole**2).sum(axis=axes, keepdims=True)) * wanted
            parts["dora_scale"] = torch.from_numpy(wanted)
        layer.weight.data = weight + 0.6 * (torch.from_numpy(whole) - weight)
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    with apply_lora(pipe, read_lora_header(tmp_path / "x.safetensors")) as adapter:
        assert adapter.matched == adapter.total == 4
        adapter.set_strength(0.6)
        drawn = answer(pipe)
    assert (drawn - answer(bare)).abs().max() > 0.02
    torch.testing.assert_close(drawn, answer(merged), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("network", ["LoCon", "DoRA", "LoHa", "LoKr", "rsLoRA blocks", "DoRA diffusers"])
def test_training_can_start_from_a_file(
    network: str, bare: StableDiffusionXLPipeline, pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    recipe, other = recipe_of(network), copy.deepcopy(bare)
    adapters = trained(other, recipe)
    path = write(tmp_path / "x.safetensors", other, adapters, recipe)
    encoders = [pipe.text_encoder, pipe.text_encoder_2]
    targets = find_target_layers(pipe.unet, encoders)
    again = add_adapters(pipe.unet, encoders, recipe)
    assert load_network_weights(path, again, recipe, targets) == (len(adapters.layers), len(adapters.layers))
    assert same(again.state(), adapters.state())


def test_a_file_that_does_not_fit_the_recipe_is_refused(
    bare: StableDiffusionXLPipeline, pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    recipe = recipe_of("LoRA")
    targets = find_target_layers(bare.unet, [bare.text_encoder, bare.text_encoder_2])
    path = write(tmp_path / "x.safetensors", pipe, trained(pipe, recipe), recipe)
    expected = {
        "network_type is LoHa": {"network_type": "LoHa"},
        "network_type is DoRA": {"network_type": "DoRA"},
        "Set network_dim to 4": {"network_dim": 8},
        "Set network_alpha to 2": {"network_alpha": 4},
        "Set text_encoder_lr above 0": {"text_encoder_lr": 0},
        "Set unet_lr above 0": {"unet_lr": 0},
        "Set network_type, train_layers and": {"train_layers": "attention"},
    }
    assert network_weights_errors(path, recipe, targets) == []
    for words, changes in expected.items():
        (problem,) = network_weights_errors(path, Recipe.parse(SMALL | changes), targets)
        assert words in problem
        assert "x.safetensors" in problem
    assert network_weights_errors(path, Recipe.parse(SMALL | {"network_type": "LoCon"}), targets) == []
    strange = load_file(path) | {
        f"lora_unet_input_blocks_8_1_proj_in.{part}": torch.ones(4, 4)
        for part in ("lora_up.weight", "lora_down.weight")
    }
    save_file(strange, tmp_path / "strange.safetensors")
    (problem,) = network_weights_errors(tmp_path / "strange.safetensors", recipe, targets)
    assert "1 layers that the base has not, like lora_unet_input_blocks_8_1_proj_in" in problem


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    make_images(folder / "images", [(64, 64)])
    save_tiny_sdxl(folder / "base", layers=1)
    return folder


@settings(max_examples=30)
@given(
    kind=st.sampled_from(["LoRA", "DoRA", "LoHa", "LoKr"]),
    sides=st.tuples(st.integers(2, 24), st.integers(2, 24)),
    kernel=st.sampled_from([0, 1, 3]),
    dim=st.integers(1, 12),
    alpha=st.floats(0.01, 100),
    spelling=st.sampled_from(["kohya", "underscored diffusers"]),
)
def test_any_layer_of_any_size_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    sides: tuple[int, int],
    kernel: int,
    dim: int,
    alpha: float,
    spelling: str,
) -> None:
    layer = Layer("unet", LayerRole.CONVOLUTION, "mid0", *sides, kernel)
    target = TargetLayer("unet", "mid_block.resnets.0.conv1", "middle_block.0.in_layers.2", layer)
    recipe = Recipe.parse({"network_type": kind, "train_layers": "all", "network_dim": dim, "network_alpha": alpha})
    size = layer_dim_alpha(recipe, layer)
    assert size is not None
    shapes = tensor_shapes(recipe, layer, size.dim)
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()} | {"alpha": torch.tensor(size.alpha)}
    name = target.kohya_name if spelling == "kohya" else "lora_unet_mid_block_resnets_0_conv1"
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    save_file({f"{name}.{part}": tensor for part, tensor in tensors.items()}, path)
    (found,), missing = read_layers(read_lora_header(path), [target])
    assert not missing
    assert (found.kind.value, found.magnitude_axis) == (kind, 0)
    assert found.alpha / found.dim == pytest.approx(size.alpha / size.dim)
    assert same(found.tensors, {part: tensor for part, tensor in tensors.items() if part in found.tensors})
    assert set(found.tensors) == set(shapes) - {"dora_scale"}
    assert (found.magnitude is not None) == (kind == "DoRA")


@pytest.mark.parametrize("network", ["LoRA", "LoCon", "DoRA", "LoHa", "LoKr"])
def test_a_run_with_dropout_goes_on_bit_for_bit(network: str, shared: Path, tmp_path: Path) -> None:
    """Two steps, a saved state and two more in another run are four steps, with gradient checkpointing too."""
    job = make_job(
        shared / "base",
        shared / "images",
        **NETWORKS[network] | {"network_dropout": 0.3, "epochs": 4, "gradient_checkpointing": network == "DoRA"},
        base_precision={"LoRA": "nf4", "DoRA": "int8"}.get(network, "full"),
    )
    ends = []
    first = start(job, tmp_path / "run", Home(shared / "home"))
    begin = {name: weight.clone() for name, weight in first.adapters.state().items()}
    for step in range(1, 5):
        assert train_step(first).read() is not None
        first.step = step
        if step == 2:
            save_resume_state(first)
    ends.append({name: weight.clone() for name, weight in first.adapters.state().items()})
    second = start(job, tmp_path / "run", Home(shared / "home"))
    assert same(second.adapters.state(), begin)
    torch.rand(17)  # what else draws in the process has no part in it
    state = load_state(tmp_path / "run" / "checkpoints" / "state", on_damage=pytest.fail)
    assert state is not None
    restore_run(second, state)
    for step in range(3, 5):
        train_step(second)
        second.step = step
    assert same(second.adapters.state(), ends[0])
    assert all(not torch.equal(weight, begin[name]) for name, weight in ends[0].items() if not name.startswith("te"))


def test_dropout_is_the_same_with_gradient_checkpointing(shared: Path, tmp_path: Path) -> None:
    """The second forward pass of checkpointing must leave out what the first left out."""
    results = []
    for number, checkpointing in enumerate((False, True, False)):
        dropout = 0.0 if number == 2 else 0.3
        job = make_job(
            shared / "base", shared / "images", network_dropout=dropout, gradient_checkpointing=checkpointing
        )
        run = start(job, tmp_path / str(number), Home(shared / "home"))
        train_step(run)
        results.append(torch.cat([weight.flatten() for weight in run.adapters.state().values()]))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=0)
    assert (results[0] - results[2]).abs().max() > 1e-4


@pytest.mark.parametrize("network", ["LoCon", "DoRA", "LoHa", "LoKr"])
def test_a_base_in_half_precision_trains_fp32_weights(network: str, pipe: StableDiffusionXLPipeline) -> None:
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


def test_a_run_starts_from_the_file_of_another_run(shared: Path, tmp_path: Path) -> None:
    settings = NETWORKS["LoKr"] | {"text_encoder_lr": 1e-3}
    job = make_job(shared / "base", shared / "images", **settings)
    first = start(job, tmp_path / "first", Home(shared / "home"))
    train_step(first)
    first.step = 1
    save_lora_file(first, tmp_path / "first.safetensors", 1)
    lora = read_lora_header(tmp_path / "first.safetensors")
    assert lora.metadata["ss_network_module"] == "lycoris.kohya"
    assert '"algo": "lokr"' in lora.metadata["ss_network_args"]
    again = job.model_copy(update={"network_weights": lora.path})
    assert job_from_toml(job_to_toml(again)) == again
    second = start(again, tmp_path / "second", Home(shared / "home"))
    assert same(second.adapters.state(), first.adapters.state())
    unet_only = make_job(shared / "base", shared / "images", **NETWORKS["LoKr"])
    with pytest.raises(ConfigError, match=r"first\.safetensors has \d+ layers .* Set text_encoder_lr above 0"):
        start(unet_only.model_copy(update={"network_weights": lora.path}), tmp_path / "third", Home(shared / "home"))


def test_preflight_refuses_weights_of_another_network(shared: Path, tmp_path: Path, bare: Any) -> None:
    other = copy.deepcopy(bare)
    recipe = recipe_of("LoHa")
    path = write(tmp_path / "x.safetensors", other, trained(other, recipe), recipe)
    job = make_job(shared / "base", shared / "images").model_copy(update={"network_weights": path})
    with pytest.raises(ConfigError, match=r"x\.safetensors is a LoHa, but network_type is LoRA"):
        start(job, tmp_path / "run", Home(shared / "home"))
    nothing = make_job(shared / "base", shared / "images", block_dims="in=0,mid=0,out=0")
    with pytest.raises(ConfigError, match="No layer is left to train"):
        start(nothing, tmp_path / "run", Home(shared / "home"))
