"""Import of settings from the files of kohya_ss and sd-scripts, and from a LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_studio.errors import InputError
from lora_studio.interop.files import import_settings
from lora_studio.interop.metadata import metadata_arguments
from lora_studio.settings.recipe import Recipe
from tests.support.kohya_presets import DATA

FORM = {
    "LoRA_type": "LyCORIS/LoKr",
    "LyCORIS_preset": "full",
    "network_dim": 16,
    "network_alpha": 8,
    "conv_dim": 8,
    "conv_alpha": 4,
    "factor": 6,
    "decompose_both": False,
    "train_on_input": True,
    "unet_lr": 0.0004,
    "text_encoder_lr": 0.0,
    "learning_rate": 0.0001,
    "optimizer": "AdamW8bit",
    "optimizer_args": '"weight_decay=0.02" betas=0.9,0.99',
    "lr_scheduler": "cosine",
    "lr_warmup": 10,
    "epoch": 7,
    "max_train_epochs": 0,
    "max_train_steps": 0,
    "train_batch_size": 2,
    "max_resolution": "768,768",
    "noise_offset_type": "Multires",
    "noise_offset": 0.05,
    "multires_noise_iterations": 6,
    "multires_noise_discount": 0.2,
    "caption_extension": ".txt",
    "seed": "17415",
    "clip_skip": 1,
    "sdxl": True,
    "xformers": "xformers",
    "sample_prompts": "a cat --w 640\na dog",
    "additional_parameters": "--caption_tag_dropout_rate=0.1 --log_prefix xl",
    "flux1_checkbox": False,
    "weighted_captions": True,
    "guidance_scale": 3.5,
}


def write(folder: Path, name: str, content: Any) -> Path:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return file


def test_the_form_of_kohya_ss(tmp_path: Path) -> None:
    found = import_settings(write(tmp_path, "form.json", FORM))
    recipe = Recipe.parse(found.recipe)
    assert (recipe.network_type, recipe.network_dim, recipe.conv_dim, recipe.lokr_factor) == ("LoKr", 16, 8, 6)
    assert (recipe.unet_lr, recipe.text_encoder_lr, recipe.epochs, recipe.batch_size) == (0.0004, 0, 7, 2)
    assert (recipe.weight_decay, recipe.optimizer_args, recipe.lr_warmup_steps) == (0.02, ["betas=0.9,0.99"], 0.1)
    assert (recipe.noise_offset, recipe.multires_noise_iterations, recipe.multires_noise_discount) == (0, 6, 0.2)
    assert (recipe.resolution, recipe.seed, recipe.caption_tag_dropout_rate) == (768, 17415, 0.1)
    assert recipe.sample_prompts == ["a cat --w 640", "a dog"]
    assert {item.name for item in found.left_out if item.matters} == {"weighted_captions"}
    assert {item.name for item in found.left_out if not item.matters} == {"clip_skip", "xformers", "log_prefix"}


@pytest.mark.parametrize(
    ("changes", "module"), [({"LoRA_type": "Standard"}, "LoRA"), ({"LoRA_type": "Kohya LoCon"}, "LoCon")]
)
def test_a_plain_lora_ignores_the_ranks_of_convolutions(tmp_path: Path, changes: dict[str, Any], module: str) -> None:
    found = import_settings(write(tmp_path, "form.json", FORM | changes))
    assert found.recipe["network_type"] == module


def test_settings_for_another_architecture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        import_settings(write(tmp_path, "form.json", FORM | {"flux1_checkbox": True}))
    assert caught.value.code == "not_sdxl"


def test_a_form_for_sd15_says_so(tmp_path: Path) -> None:
    found = import_settings(write(tmp_path, "form.json", FORM | {"sdxl": False}))
    assert "sdxl" in {item.name for item in found.left_out if item.matters}


def test_sections_of_a_toml_only_sort_it(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "prompts.txt").write_text("# shown\na cat\n\na dog --s 30\n")
    text = """
    [model]
    pretrained_model_name_or_path = "x/y"
    [train]
    train_data_dir = "images"
    unet_lr = 1.5e-4
    network_dim = 24
    network_args = ["conv_dim=4"]
    sample_prompts = "prompts.txt"
    sample_every_n_epochs = 2
    """
    found = import_settings(write(tmp_path, "config.toml", text))
    assert (found.recipe["unet_lr"], found.recipe["network_dim"], found.recipe["conv_dim"]) == (1.5e-4, 24, 4)
    assert (found.recipe["sample_prompts"], found.recipe["sample_every_n_epochs"]) == (["a cat", "a dog --s 30"], 2)
    assert found.job == {"base": "x/y", "dataset": str(images)}


def test_samples_stay_the_studios_where_a_file_has_no_prompts(tmp_path: Path) -> None:
    found = import_settings(write(tmp_path, "config.toml", "unet_lr = 1e-4"))
    assert not any(name.startswith("sample_") for name in found.recipe)


def test_paths_of_another_computer_are_listed(tmp_path: Path) -> None:
    found = import_settings(write(tmp_path, "c.toml", "unet_lr = 1e-4\nnetwork_weights = 'D:/lora.safetensors'"))
    assert found.job == {}
    assert [item.name for item in found.left_out] == ["network_weights"]


def test_the_metadata_of_a_lora_from_sd_scripts() -> None:
    found = import_settings(DATA / "kohya_tiny_sdxl_lora.safetensors")
    recipe = Recipe.parse(found.recipe)
    assert (recipe.network_dim, recipe.network_alpha, recipe.unet_lr, recipe.text_encoder_lr) == (8, 4, 1e-3, 1e-4)
    assert (recipe.optimizer, recipe.lr_scheduler, recipe.noise_offset, recipe.min_snr_gamma) == (
        *("AdamW", "constant"),
        *(0.05, 5),
    )
    assert (recipe.resolution, recipe.min_bucket_reso, recipe.max_bucket_reso) == (256, 128, 512)
    assert recipe.max_train_steps == 40  # of 7 epochs of 6 steps
    assert found.job == {"name": "k"}
    assert "caption_extension" not in found.recipe  # which the file does not say
    assert [item.name for item in found.left_out] == ["ss_sd_model_name"]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.json", "{", "json"),
        ("a.json", "[1]", "no_settings"),
        ("a.json", {"hello": 1}, "no_settings"),
        ("a.toml", "unet_lr = ", "toml"),
        ("a.toml", "hello = 1", "no_settings"),
        ("a.toml", 'kind = "train"', "own_job"),
        ("a.txt", "unet_lr = 1", "import_type"),
        ("a.safetensors", "no header", "lora_file"),
    ],
)
def test_files_that_cannot_be_imported(tmp_path: Path, name: str, content: Any, code: str) -> None:
    with pytest.raises(InputError) as caught:
        import_settings(write(tmp_path, name, content))
    assert caught.value.code == code


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError) as caught:
        import_settings(tmp_path / "a.toml")
    assert caught.value.code == "import_file"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        import_settings(tmp_path / "a.toml")
    assert caught.value.code == "no_file"


def test_wrong_kinds_of_values_in_a_form_are_listed(tmp_path: Path) -> None:
    wrong = {"noise_offset_type": [], "max_resolution": [], "learning_rate": [], "max_train_steps": ":", "seed": {}}
    found = import_settings(write(tmp_path, "form.json", {"LoRA_type": "Standard", **wrong}))
    Recipe.parse({**found.recipe, "unet_lr": 1e-4})
    assert {"resolution", "max_train_steps", "unet_lr"} <= {item.name for item in found.left_out}


def test_settings_of_subsets_in_metadata() -> None:
    subsets = [{"keep_tokens": 2, "flip_aug": True}, {"keep_tokens": 3}, {"is_reg": True, "keep_tokens": 9}]
    datasets = [{"resolution": [768, 768], "batch_size_per_device": 4, "subsets": subsets}]
    arguments, left_out = metadata_arguments({"ss_datasets": json.dumps(datasets)})
    assert arguments == {"resolution": [768, 768], "train_batch_size": 4}
    assert {item.name: item.value for item in left_out} == {"keep_tokens": [2, 3], "flip_aug": [True, None]}
