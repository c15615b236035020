"""Import, curation and release killed in any call that changes the disk: nothing is lost, a repeat completes it."""

from __future__ import annotations

import os
import shutil
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from lora_studio.dataset.captions.text import read_caption
from lora_studio.dataset.curate import Proposal, reject, rejected_images, restore_images
from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.ingest.importers import STALE_SECONDS, import_paths
from lora_studio.sharing.folder import build_release
from lora_studio.sharing.options import ReleaseOptions
from lora_studio.ui.dataset.contents import Contents
from lora_studio.workspace.project import Home, Project
from tests.support.import_sources import draw, pack, tree
from tests.support.jobs import make_project, make_run, make_sweep
from tests.support.kills import count_calls, die_in_call, kill_count

pytestmark = pytest.mark.slow

SEED = 19
KILLS = 12


def bring_in(project: Project) -> None:
    source = project.home.path.parent / "source"
    import_paths([source / "a.zip", source / "files"], project.images_dir)


def set_aside(project: Project) -> None:
    images = find_images(project.dataset_dir)[1:]
    reject([Proposal(path=image, reason="blurred") for image in images], project.rejected_dir)


def bring_back(project: Project) -> None:
    restore_images(project.rejected_dir)


def release(project: Project) -> None:
    (run,) = project.runs()
    build_release(run.path, ReleaseOptions())


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Captioned images, a finished run and its test, and images that can be imported."""
    project = make_project(Home(tmp_path / "home"), images=4)
    files = tmp_path / "source" / "files"
    for number in range(2):
        draw(files / f"new {number}.png", number).with_suffix(".txt").write_text(f"thing {number}", "utf-8")
    entries = {f"in zip {number}.png": draw(tmp_path / "x.png", 9 + number).read_bytes() for number in range(2)}
    pack(tmp_path / "source" / "a.zip", entries | {"in zip 0.txt": b"zipped"})
    return project


def user_files(project: Project) -> dict[str, bytes]:
    """Return what the user sees of a project: no locks and temporary files, whose names begin with a dot."""
    return {
        path: data
        for path, data in tree(project.path).items()
        if not any(part.startswith(".") for part in Path(path).parts)
    }


def image_pairs(images: Iterable[Path]) -> Counter[tuple[bytes, str | None]]:
    """Return images with their captions, by content."""
    return Counter((image.read_bytes(), read_caption(image)) for image in images)


def hidden_files(project: Project, *, stale: bool) -> list[Path]:
    """Return the locks and temporary files of a project; `stale` makes them too old for any process to write them."""
    found = [path for path in project.path.rglob(".*") if path.exists()]
    if stale:
        for path in found:
            os.utime(path, (0, time.time() - STALE_SECONDS - 1))
    return found


def kill_each_time(project: Project, operation: Callable[[Project], None], check: Callable[[str], None]) -> None:
    """Kill an operation on copies of a project in random calls, and check what is left each time."""
    saved = project.path.with_name(".saved")
    shutil.copytree(project.path, saved)
    total = count_calls(lambda: operation(project))
    assert total > 5
    source = Random(f"{SEED} {operation.__name__}")
    for kill in range(kill_count(KILLS)):
        shutil.rmtree(project.path)
        shutil.copytree(saved, project.path)
        number = source.randint(1, total)
        where = f"kill {kill} in call {number} of {total}"
        assert die_in_call(number, lambda: operation(project)), where
        assert [known.name for known in project.home.projects()] == [project.name]
        contents = Contents.of(project)  # the tab of the next start
        assert [item.path for item in contents.items] == find_images(project.dataset_dir), where
        check(where)


def test_import(project: Project) -> None:
    old = user_files(project)
    new: dict[str, bytes] = {}

    def check(where: str) -> None:
        left = user_files(project)
        assert left.items() >= old.items(), f"{where}: a file was lost"
        for image in find_images(project.dataset_dir):
            with Image.open(image) as opened:
                opened.load()
        bring_in(project)
        assert image_pairs(find_images(project.dataset_dir)) == expected, where
        hidden_files(project, stale=True)
        bring_in(project)
        assert hidden_files(project, stale=False) == [], where

    shutil.copytree(project.path, project.path.with_name(".old"))
    bring_in(project)
    new = user_files(project)
    expected = image_pairs(find_images(project.dataset_dir))
    assert sum(expected.values()) == 8
    assert new.items() > old.items()
    shutil.rmtree(project.path)
    project.path.with_name(".old").rename(project.path)
    kill_each_time(project, bring_in, check)


def test_curation(project: Project) -> None:
    images = find_images(project.dataset_dir)
    old = image_pairs(images)

    def check(where: str) -> None:
        kept, aside = find_images(project.dataset_dir), rejected_images(project.rejected_dir)
        assert sorted([*kept, *(entry.image for entry in aside)]) == images, where
        set_aside_rest = [image for image in kept if image != images[0]]
        reject([Proposal(path=image, reason="blurred") for image in set_aside_rest], project.rejected_dir)
        assert find_images(project.dataset_dir) == images[:1], where
        bring_back(project)
        assert image_pairs(find_images(project.dataset_dir)) == old, where

    kill_each_time(project, set_aside, check)


def test_restoring(project: Project) -> None:
    images = find_images(project.dataset_dir)
    old = image_pairs(images)
    set_aside(project)

    def check(where: str) -> None:
        kept, aside = find_images(project.dataset_dir), rejected_images(project.rejected_dir)
        assert sorted([*kept, *(entry.image for entry in aside)]) == images, where
        assert all(read_caption(image) for image in kept), where
        bring_back(project)
        assert image_pairs(find_images(project.dataset_dir)) == old, where
        assert rejected_images(project.rejected_dir) == []

    kill_each_time(project, bring_back, check)


def test_release(project: Project) -> None:
    run = make_run(project)
    make_sweep(project, [run.path / "ink.safetensors"])
    old = user_files(project)
    result = build_release(run.path, ReleaseOptions())
    whole = tree(result.folder)
    shutil.rmtree(result.folder.parent)

    def check(where: str) -> None:
        assert user_files(project).items() >= old.items(), where
        releases = run.path / "release"
        shown = [path for path in releases.glob("*") if not path.name.startswith(".")]
        for path in shown:  # complete, or not there
            assert path.suffix == ".zip" or tree(path) == whole, f"{where}: {path.name}"
        hidden_files(project, stale=True)
        again = build_release(run.path, ReleaseOptions())
        assert tree(again.folder) == whole, where
        assert again.folder not in shown
        with zipfile.ZipFile(again.zip) as archive:
            assert archive.testzip() is None
            assert len(archive.namelist()) == len(whole)
        assert hidden_files(project, stale=False) == [], where

    kill_each_time(project, release, check)
