"""No value can add a setting, and no name can write code or a file of settings."""

from __future__ import annotations

import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_studio.dataset.ingest.importers import import_paths
from lora_studio.errors import ConfigError, InputError
from lora_studio.interop.write import export_settings
from lora_studio.planning.presets import import_preset, rename_preset, save_preset
from lora_studio.settings.job_specs import SweepJob, TagJob, TrainJob, job_from_toml, job_to_toml
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.state.lora_files import import_lora
from lora_studio.workspace.notify import NOTIFY_FILE
from lora_studio.workspace.project import Home, Project
from tests.support.jobs import LORA, make_project

LINES = (
    "x\nevil = 1",
    'x"\nevil = 1\n[recipe]\nevil = "2',
    "x'''\r\nevil = 1\n",
    'x"""\nevil = 1\n[evil]',
    "x\u2028evil = 1",
)
NAMES = ("evil.py", "evil.pth", "sitecustomize.py", "evil.toml", "../notify", "notify.toml", "a\nb", "a/../../evil.py")
EXECUTABLE = {".py", ".pyc", ".pth", ".so", ".sh", ".bat", ".cmd", ".js", ".html", ".svg"}


def keys(value: Any, path: str = "") -> Iterator[str]:
    """Yield the keys of a parsed document with the path to each."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{path}.{key}"
            yield from keys(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from keys(item, f"{path}[]")


def text_settings() -> list[str]:
    """Return the settings of a recipe that take a text, or several."""
    fields = Recipe.model_fields
    return [name for name, field in fields.items() if field.annotation in (str, list[str], str | None)]


def parsed(model: type[Any], **values: Any) -> Any:
    """Return a model with these values; None if it refuses them."""
    try:
        return model.parse(values)
    except ConfigError:
        return None


@pytest.mark.parametrize("text", LINES, ids=repr)
def test_a_line_break_adds_no_key_to_a_job(text: str) -> None:
    given: dict[type[Any], tuple[dict[str, Any], list[str]]] = {
        TrainJob: ({"name": "x", "dataset": "d", "base": "b"}, ["name", "dataset", "base", "vae", "trigger_word"]),
        TagJob: ({"dataset": "d", "tagger": "wd14"}, ["dataset", "tagger", "trigger_word"]),
        SweepJob: ({"bases": ["b"], "prompts": ["p"]}, ["negative_prompt", "trigger_word", "feature_model"]),
    }
    accepted = 0
    for model, (values, names) in given.items():
        for name in names:
            plain, hostile = parsed(model, **values | {name: "y"}), parsed(model, **values | {name: text})
            if hostile is None:
                continue
            accepted += 1
            assert list(keys(tomllib.loads(job_to_toml(hostile)))) == list(keys(tomllib.loads(job_to_toml(plain)))), (
                name
            )
            assert job_from_toml(job_to_toml(hostile)) == hostile
    assert accepted > 5


@pytest.mark.parametrize("text", LINES, ids=repr)
def test_a_line_break_adds_no_key_to_a_preset_or_to_settings_of_kohya(home: Home, tmp_path: Path, text: str) -> None:
    project = make_project(home)
    accepted = 0
    for number, name in enumerate(text_settings()):
        for value in (text, [text]):
            recipe = parsed(Recipe, **{name: value})
            if recipe is None:
                continue
            accepted += 1
            preset = tomllib.loads(save_preset(home, f"preset {number}", recipe).read_text("utf-8"))
            assert preset.keys() <= set(Recipe.model_fields), name
            folder = tmp_path / f"export {number}"
            folder.mkdir()
            export_settings(
                recipe, folder / "x.toml", base=text, dataset=project.dataset_dir, name="x", trigger_word=text
            )
            for file in folder.glob("*.toml"):
                assert not [key for key in keys(tomllib.loads(file.read_text("utf-8"))) if "evil" in key], name
            break
    assert accepted >= 2


def files_of(home: Home) -> set[Path]:
    return {path.relative_to(home.path) for path in home.path.rglob("*") if path.is_file()}


@pytest.fixture
def project(home: Home) -> Project:
    return make_project(home)


@pytest.mark.parametrize("name", NAMES)
def test_no_name_writes_code_or_settings(home: Home, project: Project, tmp_path: Path, name: str) -> None:
    before = files_of(home)
    for write in (
        lambda: home.create_project(name),
        lambda: save_preset(home, name, Recipe(epochs=3)),
        lambda: TrainJob.parse({"name": name, "dataset": "d", "base": "b"}),
    ):
        with suppress(InputError, ConfigError):
            write()
    upload = tmp_path / "upload"
    upload.mkdir()
    picture = upload / name.replace("/", "_")
    Image.new("RGB", (64, 64), (1, 2, 3)).save(picture, "PNG")
    with zipfile.ZipFile(upload / "a.zip", "w") as archive:
        archive.writestr(name, Image.new("RGB", (64, 64), (3, 2, 1)).tobytes())
        archive.write(picture, f"10_x/{name}.png")
        archive.writestr(f"10_x/{name}", "import os")
    Image.new("RGB", (64, 64), (9, 9, 9)).save(upload / "harmless.png")
    for source in (upload, picture, upload / "a.zip"):
        with suppress(InputError):
            import_paths([source], project.images_dir)
    lora = upload / f"{name.replace('/', '_')}.safetensors"
    lora.write_bytes(LORA.read_bytes())
    import_lora(project, lora)
    written = files_of(home) - before
    assert any(path.suffix == ".png" for path in written)
    assert any(path.suffix == ".safetensors" for path in written)
    assert {path.suffix for path in written} & EXECUTABLE == set()
    assert {path.parent.name for path in written if path.suffix == ".toml"} <= {"presets"}
    assert not (home.path / NOTIFY_FILE).exists()
    assert {path.parts[0] for path in written} <= {"projects", "presets"}


@pytest.mark.parametrize("name", ["../notify", "/tmp/notify", "..", ".hidden", "a/b", "a\\b", "a\nb"])
def test_a_preset_is_not_written_outside_its_folder(home: Home, tmp_path: Path, name: str) -> None:
    save_preset(home, "mine", Recipe(epochs=3))
    given = tmp_path / "given.toml"
    given.write_text('command = ["touch", "P"]\n', "utf-8")
    with pytest.raises((InputError, ConfigError)):
        import_preset(home, given)  # its keys are not settings of a recipe
    for write in (lambda: save_preset(home, name, Recipe(epochs=3)), lambda: rename_preset(home, "mine", name)):
        with pytest.raises(InputError) as caught:
            write()
        assert caught.value.code == "preset_name"
    assert files_of(home) == {Path("presets/mine.toml")}
