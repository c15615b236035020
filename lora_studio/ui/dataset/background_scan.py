"""Import and scan images in a background thread, which keeps running while the page is reloaded or closed.

A scan needs neither a model nor a GPU, and so no worker process. The thread imports files, creates the thumbnails of
the grid, scans, and writes scan.json. The page polls its progress.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lora_studio.dataset.captions.text import read_caption
from lora_studio.dataset.captions.trigger import common_first_tag, infer_trigger
from lora_studio.dataset.images.sets import project_images, wrap_images
from lora_studio.dataset.ingest.importers import import_paths
from lora_studio.dataset.ingest.report import ImportReport
from lora_studio.dataset.manifest import Manifest, scan_stamps
from lora_studio.dataset.scan import scan
from lora_studio.dataset.tagging.cache import cached_features
from lora_studio.errors import InputError, StudioError
from lora_studio.ui.dataset.contents import load_manifest
from lora_studio.ui.widgets.thumbnails import thumbnail_url
from lora_studio.workspace.project import Home, Project

THUMBNAIL_PX = 256
CORES = os.cpu_count() or 1


@dataclass(frozen=True)
class ScanView:
    """An import or scan at one moment; without arguments, none. `key` changes when more than a bar must be rendered.

    `done` and `total` count items of the phase. `inferred_trigger` is the trigger word that the imported captions or
    set folders gave the project.
    """

    key: str = ""
    phase: str = ""
    done: int = 0
    total: int = 0
    running: bool = False
    thumbnails_ready: bool = False
    report: ImportReport | None = None
    error: StudioError | None = None
    inferred_trigger: str = ""


@dataclass
class ScanTask:
    """Progress and result of one import or scan while it runs, see `ScanView`."""

    phase: str = "Starting"
    done: int = 0
    total: int = 0
    running: bool = True
    thumbnails_ready: bool = False
    report: ImportReport | None = None
    error: StudioError | None = None
    inferred_trigger: str = ""

    def start_phase(self, phase: str, total: int = 0) -> None:
        """Begin the next phase."""
        self.phase, self.done, self.total = phase, 0, total

    def set_progress(self, done: int, total: int) -> None:
        """Set the progress of the current phase."""
        self.done, self.total = done, total

    def view(self) -> ScanView:
        """Return what the task shows now."""
        return ScanView(
            f"{id(self)}:{self.phase}:{self.running}",
            self.phase,
            self.done,
            self.total,
            self.running,
            self.thumbnails_ready,
            self.report,
            self.error,
            self.inferred_trigger,
        )


@dataclass
class ScanRunner:
    """Runs scans of a home's projects, one at a time per project."""

    home: Home
    _latest: dict[Path, ScanTask] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def view(self, project: Project) -> ScanView:
        """Return the running scan, else the latest one since the studio was started."""
        task = self._latest.get(project.path)
        return task.view() if task else ScanView()

    def is_running(self, project: Project) -> bool:
        """Return whether a scan is running."""
        return self.view(project).running

    def clear_error(self, project: Project) -> None:
        """Dismiss the error of the latest scan."""
        if task := self._latest.get(project.path):
            task.error = None

    def start(self, project: Project, sources: Sequence[Path] = ()) -> None:
        """Import `sources`, then scan; raise InputError while another scan of the project is running."""
        self._begin(project, lambda task: self._import_and_scan(project, sources, task))

    def move_loose_images(self, project: Project) -> None:
        """Move images outside of sets into the first set, then scan; raise InputError while another scan is running."""
        self._begin(project, lambda task: self._move_and_scan(project, task))

    def find_similar(self, project: Project) -> None:
        """Find similar images by a tagger's features; raise InputError while another scan is running."""
        self._begin(project, lambda task: self._find_similar(project, task))

    def _begin(self, project: Project, work: Callable[[ScanTask], None]) -> None:
        with self._lock:
            if self.is_running(project):
                raise InputError("A scan is already running.", "Try again when it has finished.", code="busy")
            task = self._latest[project.path] = ScanTask()
        threading.Thread(target=self._run, args=(project, work, task), daemon=True, name="dataset scan").start()

    def _import_and_scan(self, project: Project, sources: Sequence[Path], task: ScanTask) -> None:
        if sources:
            task.start_phase("Importing")
            task.report = import_paths(
                sources, project.images_dir, rejected_dir=project.rejected_dir, on_progress=task.set_progress
            )
            task.inferred_trigger = self._infer_trigger(project, task.report)
        self._make_thumbnails(project, task)
        self._scan(project, task)

    def _infer_trigger(self, project: Project, report: ImportReport) -> str:
        """Give a project without a trigger word the one of the imported captions; return it, "" if there is none."""
        if project.info().trigger_word or not report.added:
            return ""
        captions = [read_caption(image) or "" for image in project_images(project)]
        folders = {image.parent for image in report.added}
        if not any(captions):
            folders.discard(project.images_dir)  # the studio chose its name
        trigger = infer_trigger(captions, {folder.name for folder in folders})
        if trigger:
            project.change_info(trigger_word=trigger)
            source = "captions" if any(captions) else "set folder"
            report.notes.append(f"Trigger word set to {trigger}, from the {source}. It can be changed in Plan.")
        elif first := common_first_tag(captions):
            report.notes.append(f"All captions begin with {first}. If it is the trigger word, enter it in Plan.")
        return trigger

    def _move_and_scan(self, project: Project, task: ScanTask) -> None:
        wrap_images(project.dataset_dir, project.images_dir.name)
        self._make_thumbnails(project, task)
        self._scan(project, task)

    def _find_similar(self, project: Project, task: ScanTask) -> None:
        task.start_phase("Comparing tagger features")
        manifest = load_manifest(project)
        tagger_features = cached_features(self.home, {info.sha256 for info in manifest.infos.values()})
        if tagger_features:
            manifest.with_features(tagger_features).save_scan(project.path)
        task.thumbnails_ready = True

    def _run(self, project: Project, work: Callable[[ScanTask], None], task: ScanTask) -> None:
        try:
            work(task)
        except StudioError as error:
            task.error = error
        except Exception as error:
            logging.getLogger(__name__).exception("Scan of %s failed", project.path)
            task.error = StudioError(
                f"Unexpected {type(error).__name__}: {error}.",
                "See the terminal for the traceback.",
                code="unexpected",
            )
        finally:
            task.running = False

    def _make_thumbnails(self, project: Project, task: ScanTask) -> None:
        paths = project_images(project)
        task.start_phase("Creating thumbnails", len(paths))
        with ThreadPoolExecutor(CORES) as pool:
            for done, _ in enumerate(pool.map(self._make_thumbnail, paths), 1):
                task.done = done
        task.thumbnails_ready = True

    def _make_thumbnail(self, path: Path) -> None:
        with suppress(InputError, OSError):  # the scan reports unreadable images
            thumbnail_url(self.home, path, THUMBNAIL_PX)

    def _scan(self, project: Project, task: ScanTask) -> None:
        paths = project_images(project)
        if not paths:
            return
        task.start_phase("Checking images", len(paths))
        stamps = scan_stamps(paths)
        report = scan(
            project.dataset_dir,
            on_progress=task.set_progress,
            on_phase=task.start_phase,
            workers=CORES,
            features_of=partial(cached_features, self.home),
        )
        Manifest.of_scan(project.dataset_dir, report, stamps).save_scan(project.path)
