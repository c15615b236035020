"""What an installed package and a Docker image contain, and that a worker needs no installed package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from app import main
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


def docker_instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their arguments, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], " ".join(line.split()[1:])) for line in lines]


def test_image_serves_its_volume_as_a_user_without_rights() -> None:
    steps = dict(docker_instructions())
    assert steps["USER"] not in ("root", "0")
    assert f"LORA_STUDIO_HOME={steps['VOLUME']}" in steps["ENV"].split()
    port = steps["EXPOSE"]
    assert f"http://127.0.0.1:{port}/" in steps["HEALTHCHECK"]
    command = json.loads(steps["ENTRYPOINT"])
    assert command[command.index("--port") + 1] == port
    assert (ROOT / command[1]).is_file()
    app = typer.Typer()
    app.command()(main)
    flags = {name for option in typer.main.get_command(app).params for name in option.opts}
    assert {part for part in command if part.startswith("--")} <= flags


def test_image_has_every_file_that_the_studio_ships() -> None:
    """What .dockerignore leaves out is of no use to a running studio."""
    patterns = (ROOT / ".dockerignore").read_text("utf-8").split()
    anywhere = [pattern.removeprefix("**/") for pattern in patterns if pattern.startswith("**/")]
    needed = [path for name in ("lora_studio", "presets", "examples") for path in files_in(ROOT / name)]
    needed += [ROOT / name for name in ("app.py", "requirements.txt", "NOTICE", "LICENSE")]
    for path in needed:
        first, *below = path.relative_to(ROOT).parts
        assert not any(fnmatch(first, pattern) for pattern in patterns), path
        assert not any(fnmatch(part, pattern) for part in below for pattern in anywhere), path


def test_space_settings_name_what_the_studio_runs_on() -> None:
    front = yaml.safe_load((ROOT / "README.md").read_text("utf-8").split("---\n")[1])
    requirements = [Requirement(line) for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines()[1:]]
    gradio = next(requirement for requirement in requirements if requirement.name == "gradio")
    assert front["sdk"] == "gradio"
    assert front["sdk_version"] in gradio.specifier
    assert "oauth" in gradio.extras
    python = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["requires-python"]
    assert front["python_version"] in SpecifierSet(python)
    assert (ROOT / front["app_file"]).is_file()
    assert (front["hf_oauth"], front["hf_oauth_scopes"]) == (True, ["read-memberships"])
    assert len(front["short_description"]) <= 60
