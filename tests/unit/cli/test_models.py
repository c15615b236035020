"""The commands that list and download base models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from lora_studio.cli.main import app
from lora_studio.models.catalogue import BASES
from lora_studio.models.locate import SDXL_KEY
from lora_studio.workspace.project import Home
from tests.support.hub_server import HubServer


@pytest.fixture(autouse=True)
def hub(tiny_base: Path, home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub with one base, and a user with one checkpoint and one LoRA among the checkpoints."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    folder = tmp_path / "user/ComfyUI/models/checkpoints"
    folder.mkdir(parents=True)
    save_file({SDXL_KEY: torch.zeros(1)}, folder / "mine.safetensors")
    save_file({"a.lora_down.weight": torch.zeros(1)}, folder / "lora.safetensors")
    with HubServer.of_folders(someone__tiny=tiny_base).running() as server:
        server.use_here(monkeypatch, tmp_path / "cache")
        yield server


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["models", *words])


def test_models_lists_the_catalogue_and_what_is_on_this_machine() -> None:
    listed = json.loads(run("--json").stdout)
    assert [model["name"] for model in listed] == [*BASES, "mine.safetensors"]
    assert {model["name"]: model["place"] for model in listed if model["place"]} == {
        "embedded": "the studio",
        "mine.safetensors": "ComfyUI",
    }
    assert listed[0]["license"] == BASES["SDXL 1.0"].license
    every = json.loads(run("--all", "--json").stdout)
    assert [model["name"] for model in every if model["problem"]] == ["lora.safetensors"]
    assert "download, 6.9 GB" in run().stdout


def test_models_download_downloads_one() -> None:
    done = run("download", "someone/tiny", "--json")
    assert (Path(json.loads(done.stdout)["path"]) / "unet" / "config.json").is_file()
    assert "someone/tiny" in run("--json").stdout
