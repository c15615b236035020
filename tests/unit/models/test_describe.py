"""Bases are described from the catalogue, from their files or from a repository's configuration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_studio.errors import InputError
from lora_studio.models import describe
from lora_studio.models.describe import describe_base
from lora_studio.models.locate import SDXL_CONFIG, SDXL_KEY
from lora_studio.workspace.project import Home


@pytest.fixture
def v_prediction(tmp_path: Path) -> Path:
    """Create the configuration of an SDXL with v-prediction and zero terminal SNR, as a folder in diffusers layout."""
    folder = tmp_path / "v-pred"
    shutil.copytree(SDXL_CONFIG, folder)
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text("utf-8")) | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    file.write_text(json.dumps(config), "utf-8")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}), "utf-8")
    return folder


@pytest.fixture
def downloaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the repositories that are asked for; the Hub cannot be reached."""
    asked: list[str] = []

    def refuse(repo: str, patterns: list[str]) -> Path:
        asked.append(repo)
        raise InputError("No network.", "Connect.", code="hub_download")

    describe._describe_repo.cache_clear()
    monkeypatch.setattr(describe, "download", refuse)
    return asked


def test_the_catalogue_needs_no_file(home: Home, downloaded: list[str]) -> None:
    base = describe_base("NoobAI XL v-pred", home)
    assert base is not None
    assert (base.name, base.prediction_type) == ("NoobAI XL v-pred", "v_prediction")
    assert not downloaded


def test_a_file_states_what_it_predicts(tmp_path: Path, home: Home) -> None:
    markers = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    save_file({SDXL_KEY: torch.zeros(1), **markers}, tmp_path / "noob.safetensors")
    base = describe_base(str(tmp_path / "noob.safetensors"), home)
    assert base is not None
    assert (base.prediction_type, base.zero_terminal_snr, base.resolution) == ("v_prediction", True, 1024)
    assert not base.is_embedded


def test_a_file_that_states_nothing_is_said_to_be_assumed(tmp_path: Path, home: Home) -> None:
    save_file({SDXL_KEY: torch.zeros(1)}, tmp_path / "plain.safetensors")
    base = describe_base(str(tmp_path / "plain.safetensors"), home)
    assert base is not None
    assert base.prediction_type == "epsilon"
    assert "does not state" in base.why


def test_a_folder_and_a_repository_state_the_same(
    v_prediction: Path, home: Home, monkeypatch: pytest.MonkeyPatch, downloaded: list[str]
) -> None:
    folder = describe_base(str(v_prediction), home)
    monkeypatch.setattr(describe, "download", lambda repo, patterns: v_prediction)
    repo = describe_base("someone/v-pred", home)
    assert folder is not None
    assert repo is not None
    assert (repo.prediction_type, repo.zero_terminal_snr) == (folder.prediction_type, folder.zero_terminal_snr)
    assert repo.prediction_type == "v_prediction"


def test_a_repository_that_cannot_be_reached_is_asked_for_once(home: Home, downloaded: list[str]) -> None:
    assert describe_base("someone/model", home) is None
    assert describe_base("someone/model", home) is None
    assert downloaded == ["someone/model"]


@pytest.mark.parametrize(("class_name", "named"), [("FluxPipeline", "FLUX"), ("StableDiffusionPipeline", "1 or 2")])
def test_other_architectures_are_refused_by_name(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch, downloaded: list[str], class_name: str, named: str
) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": class_name}), "utf-8")
    monkeypatch.setattr(describe, "download", lambda repo, patterns: tmp_path)
    for name in (str(tmp_path), "someone/model"):
        with pytest.raises(InputError, match=named) as caught:
            describe_base(name, home)
        assert caught.value.code == "base_kind"


@pytest.mark.parametrize("name", ["fooo", "SD 1.5", "Flux", "/nowhere/model.safetensors", " "])
def test_a_missing_base_is_refused(home: Home, name: str) -> None:
    with pytest.raises(InputError) as caught:
        describe_base(name, home)
    assert caught.value.code == "base_missing"
