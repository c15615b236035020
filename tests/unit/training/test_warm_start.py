"""Warm start from a LoRA file, and the errors for files that do not match the recipe."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from lora_studio.errors import ConfigError
from lora_studio.lora.header import read_lora_header
from lora_studio.lora.inject import add_adapters
from lora_studio.lora.layers import find_target_layers
from lora_studio.lora.shapes import DoraAxis
from lora_studio.settings.job_specs import job_from_toml, job_to_toml
from lora_studio.settings.recipe import Recipe
from lora_studio.training.lora_file import save_lora_file
from lora_studio.training.progress import Progress
from lora_studio.training.step import train_step
from lora_studio.training.warm_start import load_network_weights, network_dims, network_weights_errors
from lora_studio.workspace.project import Home
from tests.support.networks import NETWORKS, SMALL, add_random_adapters, eval_pipeline, in_tiers, recipe_of, write_lora
from tests.support.tiny_sdxl import save_tiny_sdxl
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


@pytest.mark.parametrize(
    "network", in_tiers(["LoCon", "DoRA", "LoHa", "LoKr", "rsLoRA blocks", "DoRA diffusers"], fast=["LoCon", "LoKr"])
)
def test_warm_start_copies_all_weights_of_a_file(
    network: str, bare: StableDiffusionXLPipeline, pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    recipe, other = recipe_of(network), copy.deepcopy(bare)
    adapters = add_random_adapters(other, recipe)
    path = write_lora(tmp_path / "x.safetensors", other, adapters, recipe)
    encoders = [pipe.text_encoder, pipe.text_encoder_2]
    targets = find_target_layers(pipe.unet, encoders)
    again = add_adapters(pipe.unet, encoders, recipe)
    assert load_network_weights(path, again, recipe, targets) == (len(adapters.layers), len(adapters.layers))
    # alphas that differ between layers are one in the file, and the up matrices are multiplied by the rest
    torch.testing.assert_close(again.state(), adapters.state(), atol=0, rtol=3e-7)


@pytest.mark.slow
def test_a_dora_is_trained_on_along_the_axis_of_the_file(
    bare: StableDiffusionXLPipeline, pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    per_input, per_output = recipe_of("DoRA"), recipe_of("DoRA diffusers")
    encoders = [pipe.text_encoder, pipe.text_encoder_2]
    targets = find_target_layers(pipe.unet, encoders)
    files = {}
    for axis, recipe in zip((DoraAxis.INPUT, DoraAxis.OUTPUT), (per_input, per_output), strict=True):
        other = copy.deepcopy(bare)
        adapters = add_random_adapters(other, recipe)
        assert adapters.dora_axis is axis
        files[axis] = (write_lora(tmp_path / f"{axis}.safetensors", other, adapters, recipe), adapters)
    path, theirs = files[DoraAxis.OUTPUT]
    again = add_adapters(pipe.unet, encoders, per_input)
    load_network_weights(path, again, per_input, targets)
    assert again.dora_axis is DoraAxis.OUTPUT
    assert same(again.state(), theirs.state())
    written = load_file(write_lora(tmp_path / "again.safetensors", pipe, again, per_input))
    expected = {target.kohya_name: (target.layer.outputs, 1) for target in targets}
    assert {name[:-11]: scale.shape[:2] for name, scale in written.items() if name.endswith("dora_scale")} == expected
    (error,) = network_weights_errors(files[DoraAxis.INPUT][0], per_output, targets)
    assert "Set save_format to kohya" in error


def test_a_mismatch_of_file_and_recipe_is_an_error_that_names_the_setting(
    bare: StableDiffusionXLPipeline, pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    recipe = recipe_of("LoRA")
    targets = find_target_layers(bare.unet, [bare.text_encoder, bare.text_encoder_2])
    path = write_lora(tmp_path / "x.safetensors", pipe, add_random_adapters(pipe, recipe), recipe)
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
        (error,) = network_weights_errors(path, Recipe.parse(SMALL | changes), targets)
        assert words in error
        assert "x.safetensors" in error
    assert network_weights_errors(path, Recipe.parse(SMALL | {"network_type": "LoCon"}), targets) == []
    strange = load_file(path) | {
        f"lora_unet_input_blocks_8_1_proj_in.{part}": torch.ones(4, 4)
        for part in ("lora_up.weight", "lora_down.weight")
    }
    save_file(strange, tmp_path / "strange.safetensors")
    (error,) = network_weights_errors(tmp_path / "strange.safetensors", recipe, targets)
    assert "1 layers" in error
    assert "lora_unet_input_blocks_8_1_proj_in" in error


@pytest.mark.slow
def test_a_run_starts_from_the_lora_of_another_run(shared: Path, tmp_path: Path) -> None:
    settings = NETWORKS["LoKr"] | {"text_encoder_lr": 1e-3}
    job = make_job(shared / "base", shared / "images", **settings)
    first = start(job, tmp_path / "first", Home(shared / "home"))
    train_step(first, 0)
    save_lora_file(first, Progress(step=1), tmp_path / "first.safetensors", 1)
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


def test_preflight_rejects_another_network_type_and_recipes_that_train_no_layer(
    shared: Path, tmp_path: Path, bare: Any
) -> None:
    other = copy.deepcopy(bare)
    recipe = recipe_of("LoHa")
    path = write_lora(tmp_path / "x.safetensors", other, add_random_adapters(other, recipe), recipe)
    job = make_job(shared / "base", shared / "images").model_copy(update={"network_weights": path})
    with pytest.raises(ConfigError, match=r"x\.safetensors is a LoHa, but network_type is LoRA"):
        start(job, tmp_path / "run", Home(shared / "home"))
    nothing = make_job(shared / "base", shared / "images", block_dims="in=0,mid=0,out=0")
    with pytest.raises(ConfigError, match="block_dims is"):
        start(nothing, tmp_path / "run", Home(shared / "home"))


FILES: dict[str, dict[str, Any]] = {
    "LoRA": {"network_dim": 2, "network_alpha": 3, "block_dims": "in=8, mid1=1, out0=0"},
    "LoCon": {"network_type": "LoCon", "conv_dim": 2, "conv_alpha": 1},
    "DoRA": {"network_type": "DoRA", "rank_stabilized": True},
    "LoHa tucker": NETWORKS["LoHa tucker"],
    "LoKr": {"network_type": "LoKr", "network_dim": 2},
    "LoKr whole": NETWORKS["LoKr whole"],
}


@pytest.mark.parametrize("network", in_tiers(FILES, fast=["LoRA", "LoKr whole"]))
def test_dims_and_alphas_can_be_those_of_the_file(
    network: str, bare: StableDiffusionXLPipeline, pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    other, theirs = copy.deepcopy(bare), Recipe.parse(SMALL | FILES[network])
    adapters = add_random_adapters(other, theirs)
    path = write_lora(tmp_path / "x.safetensors", other, adapters, theirs)
    encoders = [pipe.text_encoder, pipe.text_encoder_2]
    targets = find_target_layers(pipe.unet, encoders)
    kept = {
        name: value for name, value in FILES[network].items() if name in ("network_type", "lokr_factor", "use_tucker")
    }
    recipe = Recipe.parse({"network_dim": 16, "train_layers": "attention_ff", "dim_from_weights": True} | kept)
    assert network_weights_errors(path, recipe, targets) == []
    again = add_adapters(pipe.unet, encoders, recipe, network=network_dims(recipe, targets, path))
    load_network_weights(path, again, recipe, targets)
    written = load_file(write_lora(tmp_path / "again.safetensors", pipe, again, recipe))
    expected = load_file(path)
    assert written.keys() == expected.keys()
    for name, tensor in written.items():
        if network == "LoKr" and name.endswith("alpha"):  # without effect in its whole matrices
            continue
        torch.testing.assert_close(tensor, expected[name], atol=0, rtol=3e-7)


def test_a_run_takes_its_dims_from_a_file_and_says_so_in_its_metadata(
    shared: Path, tmp_path: Path, bare: StableDiffusionXLPipeline
) -> None:
    other, theirs = copy.deepcopy(bare), Recipe.parse(SMALL | FILES["LoRA"])
    path = write_lora(tmp_path / "x.safetensors", other, add_random_adapters(other, theirs), theirs)
    job = make_job(shared / "base", shared / "images", dim_from_weights=True)
    home = Home(shared / "home")
    with pytest.raises(ConfigError, match="network_weights, the LoRA file to start from, is empty"):
        start(job, tmp_path / "run", home)
    job = job.model_copy(update={"network_weights": path})
    with pytest.raises(ConfigError, match="Set text_encoder_lr above 0"):
        start(job, tmp_path / "run", home)
    job.recipe.text_encoder_lr = 1e-4
    trainer = start(job, tmp_path / "run", home)
    train_step(trainer, 0)
    save_lora_file(trainer, Progress(step=1), tmp_path / "run.safetensors", 1)
    found, before = read_lora_header(tmp_path / "run.safetensors"), read_lora_header(path)
    assert {name: shape for name, (_, shape) in found.tensors.items()} == {
        name: shape for name, (_, shape) in before.tensors.items()
    }
    assert (found.metadata["ss_network_dim"], found.metadata["ss_network_alpha"]) == ("Dynamic", "3.0")
