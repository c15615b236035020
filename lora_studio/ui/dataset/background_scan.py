"""Importing and scanning in the background of the interface: it goes on while the page is reloaded or closed.

It needs no model and no GPU, so it is no job for a worker process: a thread imports what was given, makes the small
pictures of the grid, scans, and writes scan.json. The page asks how far it is.
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

from lora_studio.dataset.images.sets import project_images, wrap_images
from lora_studio.dataset.ingest.importers import ImportReport, import_paths
from lora_studio.dataset.manifest import Manifest, scan_stamps
from lora_studio.dataset.scan import scan
from lora_studio.dataset.tagging.cache import cached_features
from lora_studio.errors import InputError, StudioError
from lora_studio.ui.dataset.contents import load_manifest
from lora_studio.ui.widgets.thumbnails import picture_url
from lora_studio.workspace.project import Home, Project

THUMBNAIL_PX = 256  # px of the pictures in the grid
CORES = os.cpu_count() or 1


@dataclass
class ScanTask:
    """One pass over a project's images: what it does now, how far it is, and what came of it.

    `thumbnails_ready` says that the grid's small pictures are made.
    """

    phase: str = "Starting"
    done: int = 0
    total: int = 0
    running: bool = True
    thumbnails_ready: bool = False
    report: ImportReport | None = None
    error: StudioError | None = None

    def start_phase(self, phase: str, total: int = 0) -> None:
        """Go on to the next part."""
        self.phase, self.done, self.total = phase, 0, total

    def set_progress(self, done: int, total: int) -> None:
        """So many of so many."""
        self.done, self.total = done, total

    @property
    def render_key(self) -> str:
        """Changes when there is something else to show than a figure."""
        return f"{id(self)}:{self.phase}:{self.running}"


@dataclass
class ScanRunner:
    """The passes of a home's projects, one at a time for each."""

    home: Home
    _latest: dict[Path, ScanTask] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def latest(self, project: Project) -> ScanTask | None:
        """The pass at work, else the latest since the studio was started."""
        return self._latest.get(project.path)

    def is_running(self, project: Project) -> bool:
        """Whether a pass is at work."""
        task = self.latest(project)
        return task is not None and task.running

    def clear_error(self, project: Project) -> None:
        """The user read why the latest pass failed, and went on."""
        task = self.latest(project)
        if task is not None:
            task.error = None

    def start(self, project: Project, sources: Sequence[Path] = ()) -> ScanTask:
        """Import `sources`, then scan; raises InputError while another pass over the project is at work."""
        return self._begin(project, lambda task: self._import_and_scan(project, sources, task))

    def move_loose_images(self, project: Project) -> ScanTask:
        """Put images beside the sets into the first one, then scan; raises InputError while another pass is at work."""
        return self._begin(project, lambda task: self._move_and_scan(project, task))

    def find_similar(self, project: Project) -> ScanTask:
        """Find similar images by what a tagger saw; raises InputError while another pass is at work."""
        return self._begin(project, lambda task: self._find_similar(project, task))

    def _begin(self, project: Project, work: Callable[[ScanTask], None]) -> ScanTask:
        with self._lock:
            if self.is_running(project):
                raise InputError(
                    "The images are being looked at.", "Wait until that is done, then try again.", code="busy"
                )
            task = self._latest[project.path] = ScanTask()
        threading.Thread(target=self._run, args=(project, work, task), daemon=True, name="dataset scan").start()
        return task

    def _import_and_scan(self, project: Project, sources: Sequence[Path], task: ScanTask) -> None:
        if sources:
            task.start_phase("Importing")
            task.report = import_paths(
                sources, project.images_dir, rejected_dir=project.rejected_dir, on_progress=task.set_progress
            )
        self._make_thumbnails(project, task)
        self._scan(project, task)

    def _move_and_scan(self, project: Project, task: ScanTask) -> None:
        wrap_images(project.dataset_dir, project.images_dir.name)
        self._make_thumbnails(project, task)
        self._scan(project, task)

    def _find_similar(self, project: Project, task: ScanTask) -> None:
        task.start_phase("Comparing what the tagger saw")
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
            logging.getLogger(__name__).exception("looking at the images of %s", project.path)
            task.error = StudioError(
                f"This should not have happened: {type(error).__name__}: {error}.",
                "Its traceback is where the studio was started.",
            )
        finally:
            task.running = False

    def _make_thumbnails(self, project: Project, task: ScanTask) -> None:
        paths = project_images(project)
        task.start_phase("Making small pictures", len(paths))
        with ThreadPoolExecutor(CORES) as pool:
            for done, _ in enumerate(pool.map(self._make_thumbnail, paths), 1):
                task.done = done
        task.thumbnails_ready = True

    def _make_thumbnail(self, path: Path) -> None:
        with suppress(InputError, OSError):  # the scan says what cannot be read
            picture_url(self.home, path, THUMBNAIL_PX)

    def _scan(self, project: Project, task: ScanTask) -> None:
        paths = project_images(project)
        if not paths:
            return
        task.start_phase("Looking for flaws", len(paths))
        stamps = scan_stamps(paths)
        report = scan(
            project.dataset_dir,
            on_progress=task.set_progress,
            on_phase=task.start_phase,
            workers=CORES,
            features_of=partial(cached_features, self.home),
        )
        Manifest.of_scan(project.dataset_dir, report, stamps).save_scan(project.path)
