"""Output on stdout: JSON documents and plain lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from lora_studio.cli.console import print_json, print_lines


class Example(BaseModel):
    """A model with a path."""

    path: Path = Path("a/ü.png")


def test_models_and_values_are_printed_as_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(Example())
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"path": "a/ü.png"}
    assert "ü" in printed
    print_json({"files": [Path("b.txt")], "loss": None})
    assert json.loads(capsys.readouterr().out) == {"files": ["b.txt"], "loss": None}


def test_lines_are_printed_without_wrapping_and_markup(capsys: pytest.CaptureFixture[str]) -> None:
    long = "word " * 100 + "[bold]end[/bold]"
    print_lines(long, "", "[red]")
    assert capsys.readouterr().out.splitlines() == [long, "", "[red]"]
