"""The commands of `lora` print their reports, and refuse to overwrite a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lora_studio.cli.lora import lora_app
from lora_studio.errors import InputError
from lora_studio.lora.header import read_lora_header
from tests.support.lora_layers import CONV, LINEAR, random_layer, write_layers

LAYERS = {LINEAR: random_layer("lora")[0], CONV: random_layer("lora", kernel=3)[0]}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_layers(tmp_path / "x.safetensors", LAYERS, **{"modelspec.title": "Ink", "ss_tag_frequency": "{}"})


def run(*arguments: object) -> str:
    """Run a command and return its stdout; raises what it raises."""
    result = CliRunner().invoke(lora_app, [str(argument) for argument in arguments], catch_exceptions=False)
    if isinstance(result.exception, InputError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def run_json(*arguments: object) -> Any:
    return json.loads(run(*arguments, "--json"))


def test_inspect_prints_what_the_file_is(source: Path) -> None:
    text = run("inspect", source)
    assert "a LoRA for SDXL" in text
    assert "LoRA in 1 layers" in text
    assert "title: Ink" in text
    assert text.count("#") >= 40
    assert run_json("inspect", source)["networks"] == {"LoRA": 1, "LoCon": 1}


def test_resize_prints_the_error_of_the_worst_layers(source: Path, tmp_path: Path) -> None:
    text = run("resize", source, "--rank", 2, "--out", tmp_path / "y.safetensors")
    assert "Relative error: " in text
    assert LINEAR in text
    assert run_json("resize", source, "--keep", 0.9, "--out", tmp_path / "z.safetensors")["error"] < 0.45
    with pytest.raises(InputError) as caught:
        run("resize", source, "--rank", 2, "--out", tmp_path / "y.safetensors")
    assert caught.value.code == "exists"


def test_merge_and_convert(source: Path, tmp_path: Path) -> None:
    merged = tmp_path / "sum.safetensors"
    assert run_json("merge", source, source, "--weight", 1, "--weight", "-0.5", "--out", merged)["error"] == 0
    assert "2 layers in diffusers naming" in run(
        "convert", merged, "--to", "diffusers", "--out", tmp_path / "d.safetensors"
    )
    with pytest.raises(InputError) as caught:
        run("convert", source, "--to", "onnx", "--out", tmp_path / "o.safetensors")
    assert caught.value.code == "naming"


def test_metadata_is_shown_edited_and_stripped(source: Path, tmp_path: Path) -> None:
    assert "modelspec.title: Ink" in run("metadata", source)
    out = tmp_path / "y.safetensors"
    run("metadata", source, "--set", "trigger=inkstamp_hc", "--set", "title=", "--out", out)
    assert read_lora_header(out).metadata == {"modelspec.trigger_phrase": "inkstamp_hc", "ss_tag_frequency": "{}"}
    assert run_json("metadata", source, "--strip", "--out", tmp_path / "z.safetensors") == {}


@pytest.mark.parametrize("options", [["--strip"], ["--set", "title=x"], ["--strip", "--set", "title=x", "--out", "y"]])
def test_metadata_needs_a_new_file_and_one_change(source: Path, options: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        run("metadata", source, *options)
    assert caught.value.code == "usage"
