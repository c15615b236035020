"""Damaged files of every kind give a true state or an error with a remedy, and reading them loses nothing."""

from __future__ import annotations

import itertools
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from lora_studio import lint_captions
from lora_studio.dataset.captions.edit_history import CaptionHistory
from lora_studio.dataset.captions.edits import add, plan_edit
from lora_studio.dataset.captions.text import read_caption
from lora_studio.dataset.curate import Proposal, reject, rejected_images
from lora_studio.dataset.images.decode import find_images, read_image, thumbnail
from lora_studio.dataset.images.header_cache import readable_size, upright_size
from lora_studio.dataset.ingest.importers import import_paths
from lora_studio.dataset.manifest import Manifest, load_scan, scan_stamps
from lora_studio.dataset.marks import MARKS_FILE, Marks, load_marks, save_marks
from lora_studio.dataset.scan import scan, scan_image
from lora_studio.errors import InputError
from lora_studio.ledger.data import captions_by_path, image_files, read_data
from lora_studio.ledger.records import home_records
from lora_studio.lora.file_settings import settings_of_file
from lora_studio.lora.header import read_lora_header
from lora_studio.lora.tools.inspect import inspect_file
from lora_studio.models.locate import Source, read_base_config
from lora_studio.training.continuation import epochs_of
from lora_studio.training.reporting.loss_by_image import read_image_losses
from lora_studio.ui.state.jobs import Jobs
from lora_studio.ui.state.run_history import RunHistories, RunView
from lora_studio.ui.state.sweep_view import SweepView
from lora_studio.workflow.record import read_record
from lora_studio.workspace.gpu_queue import live_tickets
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from lora_studio.workspace.job_paths import read_moved_paths
from lora_studio.workspace.project import Home, Project
from lora_studio.workspace.run_notes import change_notes, read_notes
from lora_studio.workspace.run_queue import RunQueue
from tests.support.corruption import Read, damaged, failures, wrong_types
from tests.support.import_sources import draw, pack, tree
from tests.support.jobs import LORA, make_project, make_sweep
from tests.support.ledger_runs import make_ledger_run

pytestmark = pytest.mark.slow

SEED = 11
ATTENTION = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(Home(tmp_path / "home"))


def check(
    file: Path,
    reads: list[Read],
    *,
    json_too: bool = False,
    flips: int = 12,
    within: int | None = None,
    limit: int = 40,
) -> None:
    variants = damaged(file.read_bytes(), SEED, flips, within)
    if json_too:
        variants = itertools.chain(variants, wrong_types(file.read_bytes(), SEED, limit))
    found = failures(file, variants, reads)
    assert not found, "\n".join(found)


def test_files_of_a_run(project: Project) -> None:
    run = make_ledger_run(project)
    change_notes(run.path, notes="good", stars=4)
    (run.path / "image_losses.json").write_text('{"images": []}')
    (run.path / "result.json").write_text('{"lora": "ink.safetensors"}')

    def views() -> None:
        histories = RunHistories()
        view = RunView.load(run, histories)
        histories.verdicts(run, view.job, running=False)

    reads: list[Read] = [
        run.status,
        run.events,
        run.result,
        run.job,
        views,
        lambda: home_records(project.home),
        lambda: Jobs(project.home).active(),
        lambda: project.check_idle("rename"),
        lambda: read_notes(run.path),
        lambda: read_data(run.path),
        lambda: captions_by_path(run.path),
        lambda: image_files(run.path, "train"),
        lambda: read_image_losses(run.path),
        lambda: epochs_of(run),
    ]
    for name in ("status.json", "events.jsonl", "result.json", "notes.json", "dataset.jsonl", "image_losses.json"):
        check(run.path / name, reads, json_too=True, flips=6, limit=20)
    check(run.job_file, reads, flips=25)


def test_a_run_with_a_damaged_status_is_what_its_other_files_say(project: Project) -> None:
    run = make_ledger_run(project)
    data = (run.path / "status.json").read_bytes()
    for name, changed in damaged(data, SEED, flips=60):
        (run.path / "status.json").write_bytes(changed)
        assert run.status().state in (JobState.DONE, JobState.FAILED), name
    (run.path / "status.json").unlink()
    assert run.status().state is JobState.FAILED
    run.write_result({})
    assert run.status().state is JobState.DONE


def test_files_of_a_sweep(project: Project) -> None:
    sweep = make_sweep(project, [LORA])
    reads: list[Read] = [lambda: SweepView.load(sweep), sweep.status, lambda: Jobs(project.home).active()]
    check(sweep.path / "measures.json", reads, json_too=True)
    check(sweep.job_file, reads, flips=25)


def test_files_of_a_project(project: Project) -> None:
    images = find_images(project.dataset_dir)
    stamps = scan_stamps(images)
    Manifest.of_scan(project.dataset_dir, scan(project.dataset_dir), stamps).save_scan(project.path)
    save_marks(project.path, Marks().with_kept(["a" * 64]).with_reviewed([("b" * 64, "x")]))
    history = CaptionHistory.of(project.dataset_dir)
    history.apply(plan_edit(images, add("new")))
    (edit,) = history.folder.glob("*.jsonl")
    reject([Proposal(path=images[0], reason="blurred")], project.rejected_dir)
    (project.path / "moved_paths.json").write_text('{"/a": "/b"}')
    (project.path / "make.json").write_text("{}")
    queue = RunQueue(project.home)
    queue.add(JobFolder.create(project.new_run_dir("x"), make_ledger_run(project).job()))
    ticket = project.home.queue / "1-1.json"
    ticket.write_text('{"label": "x", "pid": 1, "pid_started": 1.0}')
    records = project.path

    def manifest() -> None:
        found = Manifest.load(records, project.dataset_dir)
        assert found.proposals() is not None
        assert found.duplicates is not None

    reads: dict[Path, list[Read]] = {
        records / "project.json": [project.info, project.home.projects],
        records / "scan.json": [lambda: load_scan(records), manifest],
        records / MARKS_FILE: [lambda: load_marks(records), manifest],
        records / "moved_paths.json": [lambda: read_moved_paths(project.runs()[0].path), project.runs()[0].job],
        records / "make.json": [lambda: read_record(project)],
        project.rejected_dir / "rejected.json": [lambda: rejected_images(project.rejected_dir)],
        edit: [history.edits, lambda: history.state_of_job(records / "tags" / "001")],
        queue.file: [queue.runs],
    }
    for file, functions in reads.items():
        check(file, functions, json_too=True)
    original = ticket.read_bytes()
    for _, changed in [*damaged(original, SEED), *wrong_types(original, SEED)]:
        ticket.write_bytes(changed)
        live_tickets(project.home.queue)


def test_damaged_marks_are_kept_when_new_ones_are_saved(project: Project) -> None:
    save_marks(project.path, Marks().with_kept(["a" * 64]))
    file = project.path / MARKS_FILE
    original = file.read_bytes()
    for name, data in damaged(original, SEED):
        file.write_bytes(data)
        if load_marks(project.path) == Marks():
            save_marks(project.path, Marks().with_kept(["c" * 64]))
            kept = [other.read_bytes() for other in project.path.glob("marks*")]
            assert data in kept, name


def test_undoing_a_damaged_edit_changes_no_caption_to_anything_else(project: Project) -> None:
    images = find_images(project.dataset_dir)
    history = CaptionHistory.of(project.dataset_dir)
    before = tree(project.dataset_dir)
    history.apply(plan_edit(images, add("new")))
    after = tree(project.dataset_dir)
    (edit,) = history.folder.glob("*.jsonl")
    data = edit.read_bytes()
    variants = [(name, changed) for name, changed in damaged(data, SEED, flips=0) if "insert" not in name]
    for name, changed in variants:
        edit.write_bytes(changed)
        assert not failures(edit, [(name, changed)], []), name
        with suppress(InputError):
            CaptionHistory.of(project.dataset_dir).undo()
        for path, content in tree(project.dataset_dir).items():
            assert content in (before.get(path), after.get(path)), f"{name}: {path}"
        for path in history.folder.glob("*.undone"):
            path.unlink()
        edit.write_bytes(data)
        for path, content in after.items():
            (project.dataset_dir / path).write_bytes(content)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".bmp", ".tif"])
def test_images(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    path = folder / f"a{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(SEED).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **({"exif": exif} if suffix in (".png", ".jpg", ".webp") else {}))
    reads: list[Read] = [
        lambda: read_image(path),
        lambda: scan_image(path),
        lambda: upright_size(path),
        lambda: readable_size(path),
        lambda: thumbnail(path, tmp_path / "thumbnails"),
    ]
    check(path, reads, flips=40, within=400)
    check(path, reads, flips=20)


def test_captions(tmp_path: Path) -> None:
    image = draw(tmp_path / "a.png")
    caption = image.with_suffix(".txt")
    for text in ("ohwx, red apple, café", "a <img src=x onerror=alert(1)>\n" * 40):
        for encoding in ("utf-8", "utf-16"):
            caption.write_bytes(text.encode(encoding))
            check(caption, [lambda: read_caption(image), lambda: lint_captions(tmp_path)], flips=10)


def test_zips(tmp_path: Path) -> None:
    entries = {f"10_ink/{number}.png": draw(tmp_path / "x.png", number).read_bytes() for number in range(2)}
    (tmp_path / "zips").mkdir()
    archive = pack(tmp_path / "zips" / "a.zip", entries)
    numbers = itertools.count()

    def extract() -> None:
        dataset = tmp_path / "datasets" / str(next(numbers)) / "dataset"
        report = import_paths([archive], dataset / "10_ink")
        assert all(read_image(image).size == (40, 30) for image in report.added)
        assert {path.suffix for path in dataset.rglob("*") if path.is_file()} <= {".png"}

    check(archive, [extract], flips=25)
    check(archive, [extract], flips=25, within=80)


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "loras" / "a.safetensors"
    path.parent.mkdir()
    tensors = {
        f"{ATTENTION}.lora_down.weight": np.ones((4, 1280), np.float16),
        f"{ATTENTION}.lora_up.weight": np.ones((1280, 4), np.float16),
        f"{ATTENTION}.alpha": np.array(4, np.float16),
    }
    save_file(tensors, path, metadata={"ss_network_dim": "4", "ss_tag_frequency": '{"10_ink": {"red": 3}}'})
    reads: list[Read] = [
        lambda: read_lora_header(path),
        lambda: settings_of_file(path),
        lambda: inspect_file(path),
        lambda: read_base_config(Source(str(path), "file", str(path))),
    ]
    assert read_lora_header(path).modules
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    check(path, reads, flips=80, within=header)
    text = path.read_bytes()[8:header]
    variants = [
        (name, len(changed).to_bytes(8, "little") + changed + path.read_bytes()[header:])
        for name, changed in wrong_types(text, SEED, limit=80)
    ]
    found = failures(path, variants, reads)
    assert not found, "\n".join(found)


def test_a_status_of_impossible_values_is_read(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    for pid in (-1, 0, 2**31, 2**63, 10**30):
        status = JobStatus(state=JobState.RUNNING).model_dump(mode="json") | {"pid": pid, "pid_started": 1.0}
        (tmp_path / "status.json").write_text(json.dumps(status))
        assert folder.status().state in (JobState.FAILED, JobState.CREATED), pid
