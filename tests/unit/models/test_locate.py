"""Base models are found by name, path or repository, and their configuration is read without loading them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from lora_studio.errors import InputError
from lora_studio.models.locate import SDXL_CONFIG, SDXL_KEY, Source, read_base_config, resolve_base
from lora_studio.workspace.project import Home


@pytest.mark.parametrize(
    ("markers", "metadata", "expected"),
    [
        ((), {}, ("epsilon", False, False)),
        (("v_pred",), {}, ("v_prediction", True, False)),
        (("v_pred", "ztsnr"), {}, ("v_prediction", True, True)),
        ((), {"modelspec.prediction_type": "v"}, ("v_prediction", True, False)),
        ((), {"modelspec.prediction_type": "epsilon"}, ("epsilon", True, False)),
        ((), {"modelspec.predict_key": "v"}, ("v_prediction", True, False)),
        ((), {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, ("v_prediction", True, True)),
        ((), {"ss_v_parameterization": "False", "ss_zero_terminal_snr": "False"}, ("epsilon", True, False)),
        (("v_pred",), {"modelspec.prediction_type": "epsilon"}, ("v_prediction", True, False)),
        ((), {"modelspec.prediction_type": "unknown"}, ("epsilon", False, False)),
    ],
)
def test_reads_prediction_type_and_zero_terminal_snr_of_a_single_file(
    tmp_path: Path, markers: tuple[str, ...], metadata: dict[str, str], expected: tuple[str, bool, bool]
) -> None:
    tensors = {SDXL_KEY: torch.zeros(1), **{marker: torch.tensor([]) for marker in markers}}
    save_file(tensors, tmp_path / "a.safetensors", metadata or None)
    base_config = read_base_config(Source("a", "file", str(tmp_path / "a.safetensors")))
    assert (base_config.prediction_type, base_config.prediction_type_stated, base_config.zero_terminal_snr) == expected


@pytest.mark.parametrize("marker", ["edm_mean", "edm_vpred.sigma_max"])
def test_a_base_with_the_edm_noise_schedule_is_an_error(tmp_path: Path, marker: str) -> None:
    file = tmp_path / "cosxl.safetensors"
    save_file({SDXL_KEY: torch.zeros(1), marker: torch.zeros(1)}, file)
    with pytest.raises(InputError, match="EDM") as caught:
        read_base_config(Source("a", "file", str(file)))
    assert caught.value.code == "base_schedule"


def test_the_catalogue_counts_if_the_file_states_nothing(tmp_path: Path) -> None:
    save_file({SDXL_KEY: torch.zeros(1)}, tmp_path / "a.safetensors")
    base_config = read_base_config(Source("a", "file", str(tmp_path / "a.safetensors"), "v_prediction", True))
    assert (base_config.prediction_type, base_config.prediction_type_stated, base_config.zero_terminal_snr) == (
        "v_prediction",
        True,
        True,
    )


def test_the_bundled_configuration_is_sdxls() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads((SDXL_CONFIG / "unet" / "config.json").read_text("utf-8")))
    assert sum(parameter.numel() for parameter in unet.parameters()) == 2_567_463_684
    for name, pad in (("tokenizer", 49407), ("tokenizer_2", 0)):
        tokenizer = CLIPTokenizer.from_pretrained(SDXL_CONFIG / name)
        assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
        assert tokenizer.pad_token_id == pad
        assert tokenizer.model_max_length == 77


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "somewhere/model.bin"])
@pytest.mark.parametrize("there", [True, False])
def test_pickles_are_an_error(tmp_path: Path, home: Home, name: str, there: bool) -> None:
    path = tmp_path / name
    if there:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\x80\x04.")
    with pytest.raises(InputError) as caught:
        resolve_base(str(path), home)
    assert caught.value.code == "pickle"


@pytest.mark.parametrize("name", ["", "no such model", "nowhere/model.safetensors", "../../no such place", "a/b/c"])
def test_a_missing_base_is_an_error_that_names_it(home: Home, name: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_base(name, home)
    assert caught.value.code == "base_missing"
    assert name in caught.value.message
    assert "sdxl" in caught.value.remedy.lower()


def test_finds_bases_by_name_path_and_repository(base: Path, single: Path, home: Home) -> None:
    home.models.mkdir(parents=True)
    shutil.copy(single, home.models / "mine.safetensors")
    assert resolve_base("mine", home).location == str(home.models / "mine.safetensors")
    assert resolve_base("mine.safetensors", home).kind == "file"
    assert resolve_base(str(base), home) == Source(str(base), "folder", str(base))
    assert resolve_base("someone/some-model", home) == Source("someone/some-model", "repo", "someone/some-model")
    assert resolve_base("NoobAI XL v-pred", home).prediction_type == "v_prediction"
