"""The house rules of CONTRIBUTING.md, read off the source: imports go down only, heavy libraries stay in place."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "lora_studio"
# From the top of the house down; a part may import its own row and the rows below. `demo` holds a model and its loader,
# which the catalogue names; `progress` is a bar for the command line.
ROWS = (
    ("__init__", "__main__"),
    ("ui", "cli", "caption_commands", "terminal", "worker", "api", "walkthrough"),
    ("release", "sampling", "progress"),
    ("training",),
    ("dataset", "planning", "demo"),
    ("project", "runs", "queue"),
    ("guide", "choices", "settings", "recipe", "config", "blocks", "device", "files", "hub", "libraries"),
    ("errors",),
)
LEVEL = {part: level for level, row in enumerate(ROWS) for part in row}
HEAVY = {
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "peft",
    "timm",
    "accelerate",
    "bitsandbytes",
    "prodigyopt",
    "prodigyplus",
    "pytorch_optimizer",
}
HEAVY_PLACES = ("training/", "sampling/", "dataset/taggers", "demo/")
SOURCES = sorted(PACKAGE.rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, in functions too, but not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def at_import(tree: ast.AST) -> Iterator[str]:
    """What is imported when the module is: all but what stands in functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(ast.Module([node], []))
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield from at_import(node)


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"), str(file))


def test_every_part_has_its_place() -> None:
    assert {part_of(file) for file in SOURCES} <= set(LEVEL)


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_imports_go_down_only(file: Path) -> None:
    own = part_of(file)
    for module in imports(parsed(file)):
        first, *rest = module.split(".")
        if first != "lora_studio":
            continue
        other = rest[0]
        if other in LEVEL:
            assert LEVEL[other] >= LEVEL[own], f"{name_of(file)} imports {module}, which stands above it"
        else:
            assert other == "__version__", f"{name_of(file)} imports {module} from the top of the package"


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_libraries_stay_where_they_are_used(file: Path) -> None:
    tree = parsed(file)
    tops = {module.split(".")[0] for module in imports(tree)}
    if not name_of(file).startswith("ui/"):
        assert "gradio" not in tops
    if name_of(file) == "device.py":
        tops = {module.split(".")[0] for module in at_import(tree)}
    if not name_of(file).startswith(HEAVY_PLACES):
        assert not tops & HEAVY


def test_app_is_the_one_other_place_of_gradio() -> None:
    outside = [ROOT / "app.py", *(ROOT / "examples").rglob("*.py")]
    for file in outside:
        tops = {module.split(".")[0] for module in imports(parsed(file))}
        assert not tops & HEAVY
        assert "gradio" not in tops or file.name == "app.py"


def test_the_library_never_prints() -> None:
    for file in SOURCES:
        if part_of(file) in ("cli", "__main__", "progress"):
            continue
        calls = (node.func for node in ast.walk(parsed(file)) if isinstance(node, ast.Call))
        printing = [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
        assert not printing, name_of(file)


LIGHT = """
import sys
from pathlib import Path
import lora_studio, lora_studio.api, lora_studio.cli, lora_studio.worker
from lora_studio import curate, plan, scan
from PIL import Image
folder = Path(sys.argv[1])
for number in range(3):
    Image.new("RGB", (700, 700), (90 * number, 40, 200 - 60 * number)).save(folder / f"{number}.png")
scan(folder)
curate(folder)
plan(folder, kind="style", base="sdxl")
heavy = {"torch", "diffusers", "transformers", "peft", "timm", "gradio"} & set(sys.modules)
assert not heavy, heavy
"""


def test_scanning_curating_and_planning_load_nothing_heavy(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
