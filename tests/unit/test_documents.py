"""README and CONTRIBUTING name only what exists: commands, paths, links and the annotated tree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_studio.cli.main import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
COMMANDS = {command.callback.__name__: command for command in app.registered_commands if command.callback}
GROUPS = {group.name for group in app.registered_groups}
TREE_COLUMN = 21  # where the descriptions of README's tree begin


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def tree() -> Iterator[tuple[Path, str]]:
    """Yield each path of README's tree with its description, continuation lines joined."""
    stack: list[str] = []
    entries: list[tuple[Path, str]] = []
    for line in read("README.md").split("## How it is built")[1].split("```")[1].strip().splitlines():
        name, description = line[:TREE_COLUMN].strip(), line[TREE_COLUMN:]
        if name:
            depth = (len(line) - len(line.lstrip())) // 2
            stack[depth:] = [name.rstrip("/")]
            entries.append((ROOT.joinpath(*stack), description))
        else:
            path, before = entries.pop()
            entries.append((path, f"{before} {description}"))
    yield from entries


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_paths_exist(name: str) -> None:
    text = read(name)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    for path in re.findall(r"`((?:\.?[\w-]+/)+[\w.-]*|[\w./-]+\.(?:py|toml|md|txt))`", text):
        assert path.startswith(("mask/", "10_")) or (ROOT / path).exists() or (ROOT / "lora_studio" / path).exists(), (
            path
        )
    for file in re.findall(r"-r (\S+)", text):
        assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_commands_exist(name: str) -> None:
    for command in re.findall(r"python -m lora_studio (\w+)", read(name)):
        assert command in COMMANDS or command in GROUPS, command


def test_every_command_is_documented_and_in_the_readme() -> None:
    for name, command in COMMANDS.items():
        assert command.callback is not None
        assert command.callback.__doc__
        if not command.hidden:
            assert f"python -m lora_studio {name}" in read("README.md")


def test_every_path_and_file_of_the_tree_exists() -> None:
    for path, description in tree():
        assert path.exists(), path
        folder = path if path.is_dir() else path.parent
        for name in re.findall(r"\b[\w/]+(?:\.py\b|/(?=[:, ]))", description):
            assert (folder / name).exists(), f"{folder.relative_to(ROOT)}: {name}"


def test_every_package_is_in_the_tree() -> None:
    packages = {file.parent for file in (ROOT / "lora_studio").rglob("__init__.py")}
    assert packages <= {path for path, _ in tree()}
