"""Finding taggers by name, on tiny models in the files that real ones have."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio.dataset.tagging import catalogue, labels
from lora_studio.dataset.tagging.catalogue import CATALOGUE, fetch_tagger, find_tagger, read_layout
from lora_studio.errors import InputError
from lora_studio.workspace.project import Home
from tests.support.tiny_taggers import save_tiny_wd


@pytest.fixture(scope="module")
def wd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_wd(tmp_path_factory.mktemp("wd"))


def test_finds_a_folder_in_the_models_folder(home: Home) -> None:
    save_tiny_wd(home.models / "my tagger")
    assert fetch_tagger("my tagger", home=home) == (home.models / "my tagger").resolve()


@pytest.mark.parametrize(
    ("remove", "make", "code", "named"),
    [
        ("config.json", None, "tagger_incomplete", "config.json"),
        ("selected_tags.csv", None, "tagger_incomplete", "selected_tags.csv"),
        ("model.safetensors", None, "tagger_incomplete", "model.safetensors"),
        ("model.safetensors", "pytorch_model.bin", "pickle", "pytorch_model.bin"),
        ("model.safetensors", "model.onnx", "tagger_format", "ONNX"),
    ],
)
def test_refuses_an_incomplete_folder(tmp_path: Path, remove: str, make: str | None, code: str, named: str) -> None:
    save_tiny_wd(tmp_path)
    (tmp_path / remove).unlink()
    if make:
        (tmp_path / make).touch()
    with pytest.raises(InputError, match=named) as caught:
        find_tagger(str(tmp_path), home=Home(tmp_path))
    assert caught.value.code == code
    assert caught.value.remedy


@pytest.mark.parametrize(("config", "code"), [('{"model_type": "llama"}', "tagger_layout"), ("{", "tagger_broken")])
def test_refuses_other_models_and_broken_files(tmp_path: Path, config: str, code: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError) as caught:
        read_layout(tmp_path)
    assert caught.value.code == code


@pytest.mark.parametrize(("name", "code"), [("weights.pt", "pickle"), ("config.json", "tagger_layout")])
def test_refuses_a_file_instead_of_a_folder(tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=name) as caught:
        fetch_tagger(str(tmp_path / name), home=Home(tmp_path))
    assert caught.value.code == code


@pytest.mark.parametrize("name", ["no tagger", "", "../../no such place", "a/b/c"])
def test_an_unknown_name_lists_the_catalogue(name: str, home: Home) -> None:
    with pytest.raises(InputError) as caught:
        fetch_tagger(name, home=home)
    assert caught.value.code == "tagger_missing"
    assert "wd14" in caught.value.remedy


def test_without_a_network_the_error_names_the_repository(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("wd14", "some/repository"):
        with pytest.raises(InputError, match="could not be downloaded") as caught:
            fetch_tagger(name, home=home)
        repo = CATALOGUE["wd14"].location if name == "wd14" else name
        assert str(repo) in caught.value.message
        assert "network" in caught.value.remedy


def test_checks_the_layout_of_a_repository_before_downloading_its_weights(
    wd_folder: Path, tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[tuple[str, ...]] = []

    def download(repo: str, patterns: tuple[str, ...]) -> Path:
        requested.append(tuple(patterns))
        return wd_folder if repo == "good/tagger" else tmp_path

    monkeypatch.setattr(catalogue.hub, "download", download)
    assert fetch_tagger("good/tagger", home=home) == wd_folder
    assert [labels.WEIGHTS_FILE in patterns for patterns in requested] == [False, True]
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    requested.clear()
    with pytest.raises(InputError) as caught:
        fetch_tagger("other/model", home=home)
    assert caught.value.code == "tagger_layout"
    assert [labels.WEIGHTS_FILE in patterns for patterns in requested] == [False]
