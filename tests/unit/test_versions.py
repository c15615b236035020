"""Versions of installed libraries, and the error that lists them."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from lora_studio import versions
from lora_studio.versions import INTERDEPENDENT, incompatible_libraries_error, installed_version


def test_the_version_of_a_library_is_the_installed_one() -> None:
    assert installed_version("torch") == importlib.metadata.version("torch")
    assert installed_version("no-such-library") is None


def test_the_error_has_the_first_line_of_the_reason_and_every_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed_version", {"torch": "2.0", "peft": None}.get)
    error = incompatible_libraries_error(ImportError("cannot import name 'x'.\nmore"))
    assert error.code == "libraries"
    assert "cannot import name 'x'" in error.message
    assert "more" not in error.message
    assert "torch 2.0" in error.remedy
    for name in set(INTERDEPENDENT) - {"torch"}:
        assert f"{name} missing" in error.remedy


def test_an_error_without_a_message_is_named_by_its_type() -> None:
    assert "KeyError" in incompatible_libraries_error(KeyError()).message


def test_the_requirements_are_those_of_the_checkout_or_of_the_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {item.name for item in versions.requirements()}
    assert {"torch", "gradio", "packaging"} <= names
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "lib" / "lora_studio" / "versions.py"))
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "requirements.txt").write_text("another-package", "utf-8")
    monkeypatch.setattr(versions, "requires", lambda name: ["torch>=2", 'bits>=1; sys_platform == "nowhere"'])
    assert [str(item) for item in versions.requirements()] == ["torch>=2"]
