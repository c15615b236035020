"""Whichever write, rename or flush fails: every file has its old or its new content, and a retry completes the work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora_studio.dataset.captions.edit_history import CaptionHistory
from lora_studio.dataset.captions.edits import add, plan_edit
from lora_studio.dataset.curate import Proposal, reject, restore_images
from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.ingest.importers import import_paths
from lora_studio.dataset.marks import Marks, load_marks, save_marks
from lora_studio.errors import DiskFullError, JobError, StudioError
from lora_studio.workspace.project import Home, Project
from tests.support.failing_calls import failing_calls
from tests.support.import_sources import draw, pack, tree
from tests.support.jobs import make_project

pytestmark = pytest.mark.slow

Operation = Callable[[Project], object]


def bring_in(project: Project) -> None:
    source = project.home.path.parent / "source"
    import_paths([source / "a.zip", source / "files"], project.images_dir)


def edit(project: Project) -> None:
    CaptionHistory.of(project.dataset_dir).apply(plan_edit(find_images(project.dataset_dir), add("new")))


def set_aside(project: Project) -> None:
    images = find_images(project.dataset_dir)[:2]
    reject([Proposal(path=image, reason="blurred") for image in images], project.rejected_dir)


def configure(project: Project) -> None:
    project.save_info(project.info().model_copy(update={"notes": "new"}))


def mark(project: Project) -> None:
    save_marks(project.path, load_marks(project.path).with_kept(["b" * 64]))


OPERATIONS: tuple[Operation, ...] = (bring_in, edit, set_aside, configure, mark)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = make_project(Home(tmp_path / "home"))
    save_marks(project.path, Marks().with_kept(["a" * 64]))
    files = tmp_path / "source" / "files"
    for number in range(1):
        image = draw(files / f"new {number}.png", number)
        image.with_suffix(".txt").write_text(f"thing {number}", "utf-8")
    entries = {f"in zip {number}.png": draw(tmp_path / "x.png", 9 + number).read_bytes() for number in range(1)}
    pack(tmp_path / "source" / "a.zip", entries | {"in zip 0.txt": b"zipped"})
    return project


def contents(project: Project) -> dict[str, bytes]:
    """Return the user's files: no locks, records of edits or litter, which begin with a dot or are in their folder."""
    return {
        path: data
        for path, data in tree(project.path).items()
        if not any(part.startswith(".") for part in Path(path).parts) and not path.startswith("caption_edits")
    }


def without_times(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: data for path, data in files.items() if not path.endswith("rejected.json")}


@contextmanager
def copied(project: Project) -> Iterator[None]:
    """Bring the project's files back afterwards."""
    copy = project.path.with_name("copy")
    shutil.copytree(project.path, copy)
    try:
        yield
    finally:
        shutil.rmtree(project.path)
        copy.rename(project.path)


@pytest.mark.parametrize("forever", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_every_file_is_old_or_new_whichever_call_fails(project: Project, operation: Operation, forever: bool) -> None:
    old = contents(project)
    with copied(project):
        with failing_calls() as calls:
            operation(project)
        new, total = contents(project), calls.count
    assert new != old
    assert total > 3
    for number in range(1, total + 1):
        where = f"call {number} of {total}"
        with copied(project):
            try:
                with failing_calls(number, forever=forever):
                    operation(project)
            except OSError as error:
                pytest.fail(f"{where}: {error!r}")
            except StudioError as error:
                if not error.remedy:
                    pytest.fail(f"{where}: {error!r}")
            _check_files(project, operation, old, new, where)
            if operation is set_aside:
                continue
            operation(project)
            assert contents(project) == new, where
            assert not [path for path in tree(project.path) if ".import-" in path], where


def _check_files(
    project: Project, operation: Operation, old: dict[str, bytes], new: dict[str, bytes], where: str
) -> None:
    """Check that every file is one of its two versions, and that images set aside can be brought back."""
    left = contents(project)
    if operation is set_aside:
        assert set(without_times(left)) <= set(old) | set(new), where
        restore_images(project.rejected_dir)
        assert without_times(contents(project)) == old, where
        return
    for path in old.keys() | new.keys() | left.keys():
        assert left.get(path) in (old.get(path), new.get(path)), f"{where}: {path}"


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_a_full_disk_is_reported_and_nothing_is_lost(project: Project, operation: Operation) -> None:
    """Run with the system's limit on the size of a file, at which a write fails in its middle as on a full disk."""
    resource = pytest.importorskip("resource")
    old = contents(project)
    child = os.fork()
    if child == 0:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
        try:
            operation(project)
        except DiskFullError:
            os._exit(7)
        except JobError:
            os._exit(8)
        finally:
            os._exit(9)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in ((7, 9) if operation is mark else (7,))
    assert {path: data for path, data in contents(project).items() if path in old} == old
    operation(project)
    assert contents(project) != old
