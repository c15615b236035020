"""A release is complete or not there, and never over an earlier one."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from lora_studio.errors import InputError, StudioError
from lora_studio.lora.header import read_lora_header
from lora_studio.sharing import folder as folder_module
from lora_studio.sharing.facts import Picture
from lora_studio.sharing.folder import ReleaseResult, build_release, choose_pictures
from lora_studio.sharing.options import ReleaseOptions
from lora_studio.workspace.job_folder import JobFolder
from tests.support.jobs import LORA


def build(source: Path, *, out: Path | None = None, **options: object) -> ReleaseResult:
    return build_release(source, ReleaseOptions.parse(options), out=out)


def test_folder_and_zip_have_all_files(run: JobFolder) -> None:
    result = build(run.path)
    assert result.folder == run.path / "release" / "ink"
    expected = ["README.md", "civitai.txt", "images/1.png", "images/2.png"]
    assert result.files == [*expected, "ink.json", "ink.preview.png", "ink.safetensors"]
    assert result.lora.read_bytes() == LORA.read_bytes()
    with zipfile.ZipFile(result.zip) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == sorted(f"ink/{file}" for file in result.files)
    assert (result.folder / "ink.preview.png").read_bytes() == (result.folder / "images" / "1.png").read_bytes()


def test_a_second_release_stands_beside_the_first(run: JobFolder) -> None:
    first, second = build(run.path), build(run.path)
    assert (second.folder.name, second.zip.name) == ("ink-2", "ink-2.zip")
    assert first.lora.is_file()
    shutil.rmtree(first.folder)
    assert build(run.path).folder.name == "ink-3", "a zip alone is not overwritten either"


def test_a_checkpoint_loses_its_position_in_the_name(run: JobFolder, tmp_path: Path) -> None:
    checkpoints = run.path / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    for position in ("best", "000003", "step00000120", "step00000120-saved"):
        path = checkpoints / f"ink-{position}.safetensors"
        shutil.copyfile(LORA, path)
        assert build(path, out=tmp_path / position).lora.name == "ink.safetensors"


def test_a_failure_leaves_nothing(run: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(release: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "sidecar", fail)
    with pytest.raises(StudioError):
        build(run.path)
    assert list((run.path / "release").iterdir()) == []


def test_stripped_files_keep_weights_and_lose_tags(run: JobFolder) -> None:
    whole, stripped = (read_lora_header(build(run.path, strip_tags=strip).lora) for strip in (False, True))
    assert stripped.model_hash == whole.model_hash
    assert set(stripped.metadata) < set(whole.metadata)


def test_a_preview_of_the_user_becomes_a_png(run: JobFolder, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (40, 30), "red").save(photo)
    result = build(run.path, preview=str(photo))
    with Image.open(result.folder / "ink.preview.png") as preview:
        assert (preview.format, preview.size) == ("PNG", (40, 30))


@pytest.mark.parametrize("content", [b"", b"no image", LORA.read_bytes()[:500]])
def test_a_preview_that_is_no_image_is_refused(run: JobFolder, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "preview.png"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        build(run.path, preview=str(path))
    assert caught.value.code == "preview"
    assert not (run.path / "release" / "ink").exists()


def test_pictures_with_the_trigger_word_near_the_strength_come_first() -> None:
    def picture(prompt: str, strength: float) -> Picture:
        return Picture(Path(f"{prompt}-{strength}.png"), prompt, strength)

    given = [picture("a", 1.0), picture("ink a", 0.0), picture("ink a", 1.2), picture("ink a", 0.7)]
    given += [picture(f"ink {number}", 0.5) for number in range(9)]
    chosen = choose_pictures(given, 0.8, "ink")
    assert chosen[0] == picture("ink a", 0.7)
    assert len(chosen) == 6
    assert len({found.prompt for found in chosen}) == 6
    assert all("ink" in found.prompt for found in chosen)
    assert choose_pictures(given[:1], 0.8, "ink") == given[:1]


@pytest.mark.parametrize("options", [{"name": "!!!"}, {"strength": 9}, {"license": "mine"}, {"colour": 1}])
def test_wrong_options_are_named(run: JobFolder, options: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        build(run.path, **options)
    assert next(iter(options)) in str(caught.value)
