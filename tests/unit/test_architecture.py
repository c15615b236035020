"""The import rules: modules import downwards only, without a cycle, and heavy libraries stay where they belong.

`LAYERS` is the one place where the order of the packages is written down.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lora_studio"
# From the top down. An entry is a package or a module below lora_studio; a module belongs to the longest entry that
# matches its name. It may import its own entry and the layers below; the entries of one layer do not know each other.
LAYERS = (
    ("__main__",),
    ("ui.launch", "cli.main"),
    ("ui.app",),
    ("ui.plan", "ui.dataset", "ui.train", "ui.sweep", "cli"),
    ("ui",),
    ("ui.state",),
    ("ui.widgets",),
    ("example",),
    ("__init__",),
    ("workflow", "remote.in_job"),
    ("api",),
    ("worker", "diagnosis"),
    ("event_recorder", "job_errors"),
    ("remote",),
    ("sharing",),
    ("sampling",),
    ("training.train",),
    ("training.loop", "training.build"),
    ("training.outputs", "training.step", "training.preflight"),
    ("training.validation",),
    ("training.evaluation", "training.samples", "training.warm_start", "training.lora_file", "training.resume"),
    ("training.trainer", "training.resume_state"),
    ("training.reporting",),
    ("training.progress",),
    ("training.reporting.loss_by_image",),
    ("training.reporting.loss_by_timestep", "training.reporting.base_losses"),
    ("training.speed",),
    ("training", "training.batch_loss"),
    ("training.optim",),
    ("training.data",),
    ("training.objective", "training.distributed"),
    ("training.data.rng",),
    ("interop",),
    ("ledger",),
    ("lora",),
    ("models",),
    ("measures",),
    ("planning",),
    ("dataset.ingest", "dataset.tagging"),
    ("dataset",),
    ("dataset.duplicates",),
    ("dataset.images",),
    ("dataset.captions",),
    ("dataset.validation_split",),
    ("dataset.buckets", "dataset.change_lock"),
    ("models.describe",),
    ("models.locate",),
    ("models.architectures",),
    ("demo",),
    ("workspace",),
    ("lora.shapes",),
    ("device", "hub"),
    ("hub_files",),
    ("settings",),
    ("guide_sections",),
    ("events", "guide", "models.catalogue"),
    ("torch_build",),
    ("files", "file_lock", "versions", "plurals"),
    ("errors",),
)
LEVEL = {entry: level for level, layer in enumerate(LAYERS) for entry in layer}
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
HEAVY_PLACES = ("models/", "lora/", "training/", "sampling/", "dataset/tagging/", "measures/vision.py", "demo/")
SOURCES = sorted(PACKAGE.rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def module_of(file: Path) -> str:
    """Return a file's dotted name below lora_studio; packages keep `__init__` where that has code to import."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in SOURCES}


def entry_of(module: str) -> str:
    """Return the longest entry of `LAYERS` that is the module or contains it; raise KeyError if there is none."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (entry := ".".join(parts[:length])) in LEVEL:
            return entry
    raise KeyError(module)


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield every name that is imported, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module: str) -> set[str]:
    """Return the modules of lora_studio that a module imports."""
    found = set()
    for name in imports(parsed(MODULES[module])):
        first, *rest = name.split(".")
        if first == "lora_studio":
            while rest and ".".join(rest) not in MODULES:
                rest.pop()
            found.add(".".join(rest) or "__init__")
    return found - {module}


def at_import(tree: ast.AST) -> Iterator[str]:
    """Yield what importing the module imports: everything outside functions and TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(ast.Module([node], []))
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield from at_import(node)


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"), str(file))


def test_every_module_has_a_layer() -> None:
    assert [module for module in MODULES if entry_of(module) not in LEVEL] == []


def test_every_layer_exists() -> None:
    assert {entry_of(module) for module in MODULES} == set(LEVEL)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    own = LEVEL[entry_of(module)]
    upwards = {
        other for other in own_imports(module) if entry_of(other) != entry_of(module) and LEVEL[entry_of(other)] <= own
    }
    assert not upwards, f"{module} imports modules of its own layer or one above"


def test_no_import_cycle_between_files() -> None:
    try:
        TopologicalSorter({module: own_imports(module) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


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


def test_tests_and_benchmarks_share_only_the_support_package() -> None:
    for file in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        shared = [name for name in imports(parsed(file)) if name.startswith(("tests.", "benchmarks."))]
        assert all(name.startswith("tests.support.") for name in shared), file


def test_app_is_the_one_other_place_of_gradio() -> None:
    outside = [ROOT / "app.py", *(ROOT / "examples").rglob("*.py")]
    for file in outside:
        tops = {module.split(".")[0] for module in imports(parsed(file))}
        assert not tops & HEAVY
        assert "gradio" not in tops or file.name == "app.py"


def test_the_library_never_prints() -> None:
    for file in SOURCES:
        if name_of(file).startswith(("cli/", "__main__")):
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
