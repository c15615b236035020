"""pyproject.toml: what an installed package contains, and that a worker needs no installed package."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lora_studio import files, worker
from lora_studio.files import shipped_folder
from lora_studio.versions import VERSION

ROOT = Path(__file__).parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_package_data_covers_every_file_of_the_package() -> None:
    package = ROOT / "lora_studio"
    data = {path for pattern in SETUPTOOLS["package-data"]["lora_studio"] for path in package.glob(pattern)}
    assert {path for path in files_in(package) if path.suffix != ".py"} - data == set()


def test_data_files_cover_presets_and_examples() -> None:
    shipped = {path for patterns in SETUPTOOLS["data-files"].values() for name in patterns for path in ROOT.glob(name)}
    assert files_in(ROOT / "presets") | files_in(ROOT / "examples") == shipped
    for target, patterns in SETUPTOOLS["data-files"].items():
        assert [Path(pattern).parent.as_posix() for pattern in patterns] == [target.removeprefix("share/lora-studio/")]


def test_shipped_folders_are_found_in_a_checkout_and_in_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shipped_folder("presets") == ROOT / "presets"
    monkeypatch.setattr(files, "__file__", str(tmp_path / "lib" / "lora_studio" / "files.py"))
    monkeypatch.setattr(files.sysconfig, "get_path", lambda name, scheme: str(tmp_path))
    assert shipped_folder("presets") == tmp_path / "share" / "lora-studio" / "presets"


def test_a_worker_imports_this_copy_of_the_package_from_any_folder(tmp_path: Path) -> None:
    """Another `lora_studio` in the working directory is not imported."""
    (tmp_path / "lora_studio").mkdir()
    (tmp_path / "lora_studio" / "__init__.py").write_text("raise ImportError", "utf-8")
    done = subprocess.run(
        [sys.executable, str(worker.MAIN_FILE), "--version"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout.strip(), done.stderr) == (VERSION, "")


def test_version_and_dependencies_have_one_source() -> None:
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "lora_studio.versions.VERSION"}
    assert SETUPTOOLS["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
