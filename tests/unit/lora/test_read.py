"""LoRA files of every network type and trainer are read, and change the UNet's output as they should."""

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
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor

from lora_studio.errors import InputError
from lora_studio.lora.header import read_lora_header
from lora_studio.lora.inject import add_adapters
from lora_studio.lora.layers import TargetLayer, find_readable_layers
from lora_studio.lora.read import read_layers
from lora_studio.lora.shapes import DoraAxis, Layer, LayerRole, layer_dim_alpha, tensor_shapes
from lora_studio.sampling.adapter import apply_lora
from lora_studio.settings.recipe import Recipe
from tests.support.networks import (
    NETWORKS,
    add_random_adapters,
    eval_pipeline,
    in_tiers,
    recipe_of,
    unet_output,
    write_lora,
)
from tests.support.training_runs import same


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXLPipeline:
    return eval_pipeline(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture
def pipe(bare: StableDiffusionXLPipeline) -> StableDiffusionXLPipeline:
    return copy.deepcopy(bare)


@pytest.mark.parametrize("network", in_tiers(NETWORKS, fast=("DoRA", "LoKr")))
def test_a_loaded_file_gives_the_same_output_as_the_adapters_in_memory(
    network: str, bare: StableDiffusionXLPipeline, pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    recipe, other = recipe_of(network), copy.deepcopy(bare)
    before = unet_output(bare)
    add_adapters(other.unet, [other.text_encoder, other.text_encoder_2], recipe)
    torch.testing.assert_close(unet_output(other), before, atol=1e-6, rtol=0)  # not trained yet
    other = copy.deepcopy(bare)
    adapters = add_random_adapters(other, recipe)
    mine = unet_output(other)
    lora = read_lora_header(write_lora(tmp_path / "x.safetensors", other, adapters, recipe))
    assert (mine - before).abs().max() > 0.1
    with apply_lora(pipe, lora) as adapter:
        assert adapter.matched == adapter.total == len(adapters.layers)
        torch.testing.assert_close(unet_output(pipe), mine, atol=1e-5, rtol=1e-5)
        adapter.set_strength(0)
        assert torch.equal(unet_output(pipe), before)
    assert torch.equal(unet_output(pipe), before)
    assert same(pipe.unet.state_dict(), bare.unet.state_dict())
    if network in ("LoRA", "LoCon", "LoCon diffusers", "DoRA diffusers"):
        pipe.load_lora_weights(str(tmp_path), weight_name="x.safetensors")
        torch.testing.assert_close(unet_output(pipe), mine, atol=1e-5, rtol=1e-5)


# The layers of the files that are written here: linear, two convolutions, and one of a text encoder.
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
    return {
        "lokr_w1": small,
        "lokr_w2": large,
        "alpha": torch.tensor(1.0),
    }, delta  # both matrices are full: alpha has no effect


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
    ("kind", "norms"),
    [
        *((kind, "plain") for kind in KINDS),
        *((kind, norms) for kind in ("lora", "loha") for norms in ("outputs", "inputs")),
        ("lokr_low", "outputs"),
    ],
)
def test_files_of_other_trainers_change_the_weights_by_their_formula(
    kind: str, norms: str, bare: StableDiffusionXLPipeline, pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    """Expect W + strength (V - W), computed with numpy, where V is the merged weight, scaled to dora_scale if given."""
    source = torch.Generator().manual_seed(5)
    merged, tensors = copy.deepcopy(bare), {}
    for model, path, name in (LINEAR, CONV, DOWN, TEXT):
        layer = {"unet": merged.unet, "te1": merged.text_encoder}[model].get_submodule(path)
        weight = layer.weight.data
        parts, delta = KINDS[kind](weight, lambda *shape: 0.5 * torch.randn(shape, generator=source))
        merged_weight = weight.numpy() + delta.reshape(weight.shape)
        if norms != "plain":
            axes = tuple(axis for axis in range(weight.dim()) if axis != (0 if norms == "outputs" else 1))
            wanted = np.sqrt((weight.numpy() ** 2).sum(axis=axes, keepdims=True)) * 1.3
            merged_weight = merged_weight / np.sqrt((merged_weight**2).sum(axis=axes, keepdims=True)) * wanted
            parts["dora_scale"] = torch.from_numpy(wanted)
        layer.weight.data = weight + 0.6 * (torch.from_numpy(merged_weight) - weight)
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    with apply_lora(pipe, read_lora_header(tmp_path / "x.safetensors")) as adapter:
        assert adapter.matched == adapter.total == 4
        adapter.set_strength(0.6)
        found_output = unet_output(pipe)
    assert (found_output - unet_output(bare)).abs().max() > 0.02
    torch.testing.assert_close(found_output, unet_output(merged), atol=2e-4, rtol=1e-3)


def full(weight: Tensor, noise: Any) -> tuple[dict[str, Tensor], np.ndarray]:
    diff = noise(*weight.shape)
    return {"diff": diff}, diff.numpy()


def ia3_outputs(weight: Tensor, noise: Any) -> tuple[dict[str, Tensor], np.ndarray]:
    scale = noise(weight.shape[0]) if weight.dim() == 2 else noise(1, weight.shape[0], 1, 1)
    delta = (weight.numpy().swapaxes(0, 1) * scale.numpy()).swapaxes(0, 1)
    return {"weight": scale, "on_input": torch.tensor(0)}, delta


def ia3_inputs(weight: Tensor, noise: Any) -> tuple[dict[str, Tensor], np.ndarray]:
    scale = noise(weight.shape[1]) if weight.dim() == 2 else noise(1, weight.shape[1], 1, 1)
    return {"weight": scale, "on_input": torch.tensor(1)}, weight.numpy() * scale.numpy()


def dylora(weight: Tensor, noise: Any) -> tuple[dict[str, Tensor], np.ndarray]:
    rows, columns = weight.flatten(1).shape
    down, up = noise(2, columns), noise(rows, 2)
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(3.0)}, 1.5 * (up @ down).numpy()


# What is added to a bias or a norm's weight: kohya's name and part, and the parameter of the base.
VECTORS = {
    "lora_unet_input_blocks_1_0_in_layers_0.w_norm": ("unet", "down_blocks.0.resnets.0.norm1.weight"),
    "lora_unet_input_blocks_1_0_in_layers_0.b_norm": ("unet", "down_blocks.0.resnets.0.norm1.bias"),
    "diffusion_model.out.0.diff": ("unet", "conv_norm_out.weight"),
    "diffusion_model.out.0.diff_b": ("unet", "conv_norm_out.bias"),
    "lora_unet_output_blocks_0_0_in_layers_2.diff_b": ("unet", "up_blocks.0.resnets.0.conv1.bias"),
    "lora_te1_text_model_encoder_layers_0_layer_norm1.w_norm": ("te1", "encoder.layers.0.layer_norm1.weight"),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.diff_b": ("te1", "encoder.layers.0.mlp.fc1.bias"),
}


@pytest.mark.parametrize("kind", [full, ia3_outputs, ia3_inputs, dylora])
def test_differences_of_weights_norms_and_biases_are_added(
    kind: Any, bare: StableDiffusionXLPipeline, pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    source = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=source)

    merged, tensors = copy.deepcopy(bare), {}
    models = {"unet": merged.unet, "te1": merged.text_encoder}
    conv_in = ("unet", "conv_in", "diffusion_model.input_blocks.0.0")
    for model, path, name in (LINEAR, CONV, TEXT, conv_in):
        weight = models[model].get_submodule(path).weight.data
        parts, delta = kind(weight, noise)
        weight += 0.6 * torch.from_numpy(delta).view(weight.shape)
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    for name, (model, path) in VECTORS.items():
        parameter = models[model].get_parameter(path)
        tensors[name] = noise(*parameter.shape)
        parameter.data += 0.6 * tensors[name]
    save_file(tensors, tmp_path / "x.safetensors")
    before = unet_output(bare)
    with apply_lora(pipe, read_lora_header(tmp_path / "x.safetensors")) as adapter:
        assert adapter.matched == adapter.total == 4 + len(VECTORS)
        adapter.set_strength(0.6)
        found_output = unet_output(pipe)
        adapter.set_strength(0)
        assert torch.equal(unet_output(pipe), before)
    assert (found_output - before).abs().max() > 0.02
    torch.testing.assert_close(found_output, unet_output(merged), atol=2e-4, rtol=1e-3)
    assert same(pipe.unet.state_dict(), bare.unet.state_dict())
    assert same(pipe.text_encoder.state_dict(), bare.text_encoder.state_dict())


def test_vectors_that_the_base_lacks_are_counted_and_other_sizes_refused(
    pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    gone = "lora_unet_input_blocks_9_0_in_layers_0.w_norm"
    save_file({gone: torch.ones(4), "diffusion_model.out.0.diff_b": torch.ones(16)}, path)
    with apply_lora(pipe, read_lora_header(path)) as adapter:
        assert (adapter.matched, adapter.total, adapter.missing) == (1, 2, [gone])
    save_file({"diffusion_model.out.0.diff_b": torch.ones(15)}, path)
    with pytest.raises(InputError) as caught, apply_lora(pipe, read_lora_header(path)):
        pass
    assert caught.value.code == "lora_unfit"


# Spellings of one LoRA of an attention layer of the UNet: the layer's name, and the names of both factors.
PAIR = ("lora_down.weight", "lora_up.weight")
PEFT = ("lora_A.weight", "lora_B.weight")
ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
OLD = ATTENTION.replace("to_out.0", "processor.to_out_lora")
SPELLINGS = {
    "ComfyUI": ("diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_out.0", *PAIR),
    "LyCORIS of diffusers": (f"lycoris_{ATTENTION.replace('.', '_')}", *PAIR),
    "peft": (f"base_model.model.{ATTENTION}", *PEFT),
    "peft of a pipeline": (f"unet.base_model.model.{ATTENTION}", *PEFT),
    "peft, unsaved": (f"base_model.model.{ATTENTION}", "lora_A.default.weight", "lora_B.default.weight"),
    "diffusers": (f"unet.{ATTENTION}", "lora.down.weight", "lora.up.weight"),
    "no prefix": (ATTENTION, *PEFT),
    "attention processors": (f"unet.{OLD}", "", ""),
    "attention processors, no prefix": (OLD, "", ""),
}
TEXT_SPELLINGS = {
    "ComfyUI": ("text_encoders.clip_g.transformer.text_model.encoder.layers.1.self_attn.q_proj", *PAIR),
    "peft": ("base_model.model.text_model.encoder.layers.1.self_attn.q_proj", *PEFT),
    "LyCORIS": ("lycoris_text_model_encoder_layers_1_self_attn_q_proj", *PAIR),
    "attention processors": ("text_encoder_2.text_model.encoder.layers.1.self_attn.to_q_lora", "", ""),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("text_spelling", TEXT_SPELLINGS)
def test_reads_every_spelling_of_a_layer(
    spelling: str, text_spelling: str, bare: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    expected, tensors = {}, {"bundle_emb.word.clip_l": torch.ones(2, 4)}
    for model, path, (name, down, up) in (
        ("unet", ATTENTION, SPELLINGS[spelling]),
        ("te2", "text_model.encoder.layers.1.self_attn.q_proj", TEXT_SPELLINGS[text_spelling]),
    ):
        layer = {"unet": bare.unet, "te2": bare.text_encoder_2}[model].get_submodule(path)
        a, b = torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2)
        tensors |= {f"{name}.{down or 'down.weight'}": a, f"{name}.{up or 'up.weight'}": b}
        expected[model, path] = {"lora_down.weight": a, "lora_up.weight": b}
    save_file(tensors, tmp_path / "x.safetensors")
    lora = read_lora_header(tmp_path / "x.safetensors")
    found, missing = read_layers(lora, find_readable_layers(bare.unet, [bare.text_encoder, bare.text_encoder_2]))
    assert missing == []
    assert lora.has_text_encoder
    assert {(weights.target.model, weights.target.path) for weights in found} == set(expected)
    for weights in found:
        assert same(weights.tensors, expected[weights.target.model, weights.target.path])
        assert weights.alpha == weights.dim == 2


@pytest.mark.parametrize("name", ["adapter_config.json", "copy.adapter_config.json"])
def test_a_lora_saved_by_peft_has_the_alpha_of_its_configuration(
    name: str, bare: StableDiffusionXLPipeline, pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    """Expect the output of peft's own model, which has saved the file."""
    names = ["to_q", "to_out.0", "conv1"]
    config = LoraConfig(r=4, lora_alpha=6, target_modules=names, alpha_pattern={"to_q": 3}, init_lora_weights=False)
    model = get_peft_model(copy.deepcopy(bare.unet), config)
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    if name.startswith("copy"):
        path = path.rename(tmp_path / "copy.safetensors")
        (tmp_path / "adapter_config.json").rename(tmp_path / name)
    with torch.no_grad():
        other = copy.deepcopy(bare)
        other.unet = model.base_model.model
        expected = unet_output(other)
        with apply_lora(pipe, read_lora_header(path)) as adapter:
            assert adapter.matched == adapter.total > 3
            torch.testing.assert_close(unet_output(pipe), expected, atol=1e-5, rtol=1e-5)
    assert (expected - unet_output(bare)).abs().max() > 0.01


@settings(max_examples=30)
@given(
    kind=st.sampled_from(["LoRA", "DoRA", "LoHa", "LoKr"]),
    sides=st.tuples(st.integers(2, 24), st.integers(2, 24)),
    kernel=st.sampled_from([0, 1, 3]),
    dim=st.integers(1, 12),
    alpha=st.floats(0.01, 100),
    spelling=st.sampled_from(["kohya", "underscored diffusers"]),
)
def test_reads_layers_of_any_shape_as_they_were_written(
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
    assert found.network_type.value == kind
    assert found.alpha / found.dim == pytest.approx(size.alpha / size.dim)
    assert same(found.tensors, {part: tensor for part, tensor in tensors.items() if part in found.tensors})
    assert set(found.tensors) == set(shapes) - {"dora_scale"}
    assert (found.magnitude is not None) == (kind == "DoRA")
    if found.magnitude is not None:
        assert found.magnitude_axis is DoraAxis.INPUT
        assert torch.equal(found.magnitude, tensors["dora_scale"].flatten())
