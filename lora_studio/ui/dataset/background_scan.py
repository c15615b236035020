"""Importing and scanning in the background of the interface: it goes on while the page is reloaded or closed.

It needs no model and no GPU, so it is no job for a worker process: a thread imports what was given, makes the small
pictures of the grid, scans, and writes dataset.json. The page asks how far it is.
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

from lora_studio.dataset.images.header_cache import stamp_of
from lora_studio.dataset.images.sets import project_images, wrap_images
from lora_studio.dataset.ingest.importers import ImportReport, import_paths
from lora_studio.dataset.manifest import Manifest
from lora_studio.dataset.scan import scan
from lora_studio.dataset.tagging.cache import features
from lora_studio.errors import InputError, StudioError
from lora_studio.ui.dataset.contents import load_manifest, save_manifest
from lora_studio.ui.widgets.thumbnails import picture_url
from lora_studio.workspace.project import Home, Project

GRID_SIZE = 256  # px of the pictures in the grid
CORES = os.cpu_count() or 1


@dataclass
class Look:
    """One pass over a project's images: what it does now, how far it is, and what came of it.

    `pictured` says that the grid's small pictures are made.
    """

    phase: str = "Starting"
    done: int = 0
    total: int = 0
    running: bool = True
    pictured: bool = False
    report: ImportReport | None = None
    error: StudioError | None = None

    def begin(self, phase: str, total: int = 0) -> None:
        """Go on to the next part."""
        self.phase, self.done, self.total = phase, 0, total

    def progress(self, done: int, total: int) -> None:
        """So many of so many."""
        self.done, self.total = done, total

    @property
    def stamp(self) -> str:
        """Changes when there is something else to show than a figure."""
        return f"{id(self)}:{self.phase}:{self.running}"


@dataclass
class Looks:
    """The passes of a home's projects, one at a time for each."""

    home: Home
    _last: dict[Path, Look] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def last(self, project: Project) -> Look | None:
        """The pass at work, else the latest since the studio was started."""
        return self._last.get(project.path)

    def busy(self, project: Project) -> bool:
        """Whether a pass is at work."""
        look = self.last(project)
        return look is not None and look.running

    def forget_error(self, project: Project) -> None:
        """The user read why the latest pass failed, and went on."""
        look = self.last(project)
        if look is not None:
            look.error = None

    def start(self, project: Project, sources: Sequence[Path] = ()) -> Look:
        """Import `sources`, then scan; raises InputError while another pass over the project is at work."""
        return self._begin(project, lambda look: self._import_and_scan(project, sources, look))

    def wrap(self, project: Project) -> Look:
        """Put images beside the sets into the first one, then scan; raises InputError while another pass is at work."""
        return self._begin(project, lambda look: self._wrap_and_scan(project, look))

    def compare(self, project: Project) -> Look:
        """Find similar images by what a tagger saw; raises InputError while another pass is at work."""
        return self._begin(project, lambda look: self._compare(project, look))

    def _begin(self, project: Project, work: Callable[[Look], None]) -> Look:
        with self._lock:
            if self.busy(project):
                raise InputError(
                    "The images are being looked at.", "Wait until that is done, then try again.", code="busy"
                )
            look = self._last[project.path] = Look()
        threading.Thread(target=self._run, args=(project, work, look), daemon=True, name="look at images").start()
        return look

    def _import_and_scan(self, project: Project, sources: Sequence[Path], look: Look) -> None:
        if sources:
            look.begin("Importing")
            look.report = import_paths(
                sources, project.images_dir, rejected_dir=project.rejected_dir, on_progress=look.progress
            )
        self._make_pictures(project, look)
        self._scan(project, look)

    def _wrap_and_scan(self, project: Project, look: Look) -> None:
        wrap_images(project.dataset_dir, project.images_dir.name)
        self._make_pictures(project, look)
        self._scan(project, look)

    def _compare(self, project: Project, look: Look) -> None:
        look.begin("Comparing what the tagger saw")
        manifest = load_manifest(project)
        seen = features(self.home, {info.sha256 for info in manifest.infos.values()})
        if seen:
            save_manifest(project, manifest.compared(seen))
        look.pictured = True

    def _run(self, project: Project, work: Callable[[Look], None], look: Look) -> None:
        try:
            work(look)
        except StudioError as error:
            look.error = error
        except Exception as error:
            logging.getLogger(__name__).exception("looking at the images of %s", project.path)
            look.error = StudioError(
                f"This should not have happened: {type(error).__name__}: {error}.",
                "Its traceback is where the studio was started.",
            )
        finally:
            look.running = False

    def _make_pictures(self, project: Project, look: Look) -> None:
        paths = project_images(project)
        look.begin("Making small pictures", len(paths))
        with ThreadPoolExecutor(CORES) as pool:
            for done, _ in enumerate(pool.map(self._make_picture, paths), 1):
                look.done = done
        look.pictured = True

    def _make_picture(self, path: Path) -> None:
        with suppress(InputError, OSError):  # the scan says what cannot be read
            picture_url(self.home, path, GRID_SIZE)

    def _scan(self, project: Project, look: Look) -> None:
        paths = project_images(project)
        if not paths:
            return
        look.begin("Looking for flaws", len(paths))
        stamps = {}
        for path in paths:
            with suppress(OSError):
                stamps[path] = stamp_of(path)
        report = scan(
            project.dataset_dir,
            on_progress=look.progress,
            on_phase=look.begin,
            workers=CORES,
            features_of=partial(features, self.home),
        )
        marks = load_manifest(project)
        save_manifest(project, Manifest.of_scan(project.dataset_dir, report, stamps, marks.kept, marks.reviewed))
