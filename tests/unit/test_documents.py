"""README, CONTRIBUTING and docs/ name only what exists: commands, options, paths, links, anchors and the tree."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from lora_studio.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *PAGES)
USERS_FILES = ("mask/", "10_", "cache/", "checkpoints/", "models/", "model-folders.txt")  # not in the repository
CLI = typer.main.get_command(app)
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


def anchors(name: str) -> set[str]:
    """Return the anchors of a page, as mkdocs makes them of its headings."""
    text = re.sub(r"^```.*?^```", "", read(name), flags=re.MULTILINE | re.DOTALL)
    found = set(re.findall(r'<a id="([^"]+)"', text))
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        title, separator, given = heading.partition(" { #")
        slug = re.sub(r"[^\w\s-]", "", title).strip().lower()
        found.add(given.rstrip(" }") if separator else re.sub(r"[-\s]+", "-", slug))
    return found


def code_lines(name: str) -> Iterator[list[str]]:
    """Yield the words of each command line of the studio in a document's code blocks."""
    for block in re.findall(r"^```\w*\n(.*?)^```", read(name), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if match := re.match(r"(?:\$ )?python -m lora_studio (.*)", line):
                yield shlex.split(match[1].partition(" #")[0])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_paths_exist(name: str) -> None:
    text = read(name)
    folder = (ROOT / name).parent
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", text):
        if not target.startswith(("https://", "http://")):
            file = folder / target if target else ROOT / name
            assert file.exists(), target
            if anchor and file.suffix == ".md":
                assert anchor in anchors(str(file.resolve().relative_to(ROOT))), f"{target}#{anchor}"
    for path in re.findall(r"`((?:\.?[\w-]+/)+[\w.-]*|[\w./-]+\.(?:py|md|txt))`", text):
        known = any((parent / path).exists() for parent in (ROOT, ROOT / "lora_studio", ROOT / "docs"))
        assert known or path.startswith(USERS_FILES), path
    for file in re.findall(r"-r (\S+)", text):
        assert (ROOT / file.rstrip("`,.")).is_file(), file


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_commands_exist(name: str) -> None:
    for command in re.findall(r"python -m lora\\?_studio (\w+)", read(name)):
        assert command in COMMANDS or command in GROUPS, command


@pytest.mark.parametrize("name", DOCUMENTS)
def test_options_of_commands_exist(name: str) -> None:
    for words in code_lines(name):
        command = CLI
        for word in words:
            if word in getattr(command, "commands", {}):
                command = command.commands[word]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in words:
            option = word.partition("=")[0]
            if option.startswith("--") and len(option) > 4:
                assert option in known, f"{' '.join(words)}: {option}"


def pages_of(entry: object) -> Iterator[str]:
    """Yield the pages of a part of mkdocs' navigation."""
    match entry:
        case str():
            yield f"docs/{entry}"
        case dict():
            for part in entry.values():
                yield from pages_of(part)
        case list():
            for part in entry:
                yield from pages_of(part)


def test_every_page_is_once_in_the_navigation() -> None:
    pages = list(pages_of(yaml.safe_load(read("mkdocs.yml"))["nav"]))
    assert sorted(pages) == PAGES


def test_every_page_begins_with_its_title() -> None:
    for page in PAGES:
        assert re.match(r"# \S", read(page)), page


def test_pictures_of_the_pages_are_small() -> None:
    for picture in (ROOT / "docs").glob("*.webp"):
        assert picture.stat().st_size <= 120_000, picture.name
        assert any(picture.name in read(page) for page in DOCUMENTS), picture.name


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
