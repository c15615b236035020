"""The studio's home and its projects: the only reader and writer of their layout.

```
$LORA_STUDIO_HOME                    default ~/lora-studio
  projects/NAME/
    project.json                     trigger word, kind, base model, notes, recipe
    dataset/ 10_NAME/                images with captions beside them: the layout that kohya's tools read
    rejected/                        what curation took out
    scan.json                        the result of the last scan: can be rebuilt
    marks.json                       the user's marks: reviewed captions, images to keep
    caption_edits/                   the latest edits of captions, to be undone
    runs/001-NAME/                   job folders of training
    loras/                           LoRA files from elsewhere, to be tested
    sweeps/001/                      job folders of sweeps
    tags/001/                        job folders of tagging
  cache/                             latents, text embeddings, tags, thumbnails: safe to delete
  models/                            base models that were put or downloaded here
  queue/                             whose turn it is on the GPU
  trash/                             deleted projects, to be restored by hand or by the studio
```
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from lora_studio.errors import InputError, disk_errors
from lora_studio.files import write_text
from lora_studio.settings.choices import LoraKind
from lora_studio.settings.declare import Settings
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.job_folder import JobFolder, job_folders, numbered_folder, slugify

DEFAULT_REPEATS = 10
SET_FOLDER = re.compile(r"^(\d+)_(.+)$")


class ProjectInfo(Settings):
    """project.json: what a user said about a project."""

    kind: LoraKind = LoraKind.CHARACTER
    trigger_word: str = ""
    base: str = "SDXL 1.0"
    vram_gib: float | None = None
    notes: str = ""
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Home:
    """The folder in which the studio keeps everything."""

    path: Path

    @classmethod
    def locate(cls, given: Path | str | None = None) -> Home:
        """`given`, else $LORA_STUDIO_HOME, else ~/lora-studio."""
        text = given or os.environ.get("LORA_STUDIO_HOME") or Path.home() / "lora-studio"
        return cls(Path(text).expanduser().resolve())

    def check_private(self) -> None:
        """Raise InputError if Gradio would serve this folder: it serves the working and the temporary directory."""
        for public, name in ((Path.cwd(), "working"), (Path(tempfile.gettempdir()), "temporary")):
            if self.path.is_relative_to(public.resolve()):
                raise InputError(
                    f"The studio's home {self.path} lies in the {name} directory, which the web server may show.",
                    "Set LORA_STUDIO_HOME or --home to a folder elsewhere, like ~/lora-studio.",
                    code="home_public",
                )

    @property
    def cache(self) -> Path:
        """Everything that can be made again."""
        return self.path / "cache"

    @property
    def thumbnails(self) -> Path:
        """WebP pictures made by the studio: the only folder that the browser may read."""
        return self.cache / "thumbnails"

    @property
    def models(self) -> Path:
        """Base models."""
        return self.path / "models"

    @property
    def queue(self) -> Path:
        """Tickets and the lock of the GPU."""
        return self.path / "queue"

    @property
    def trash(self) -> Path:
        """Deleted projects."""
        return self.path / "trash"

    def projects(self) -> list[Project]:
        """All projects, in order of name."""
        folder = self.path / "projects"
        found = folder.iterdir() if folder.is_dir() else iter(())
        return sorted(
            (Project(path) for path in found if path.name[0] != "." and (path / "project.json").is_file()),
            key=lambda project: project.name.lower(),
        )

    def project(self, name: str) -> Project:
        """An existing project by name; raises InputError if there is none."""
        if name not in {project.name for project in self.projects()}:
            raise InputError(f"There is no project {name!r}.", "Choose one from the list.", code="no_project")
        return Project(self.path / "projects" / name)

    def create_project(self, name: str, info: ProjectInfo | None = None) -> Project:
        """Make an empty project; raises InputError for a bad or taken name."""
        target = self._free_place(name)
        project = Project(target)
        with disk_errors(target):
            project.images_dir.mkdir(parents=True, exist_ok=True)
        project.save_info(info or ProjectInfo())
        return project

    def rename_project(self, name: str, new_name: str) -> Project:
        """Give a project another name; raises InputError if a job of it is at work or the name is taken."""
        project, target = self.project(name), self._free_place(new_name)
        project.check_idle("rename")
        project.path.rename(target)
        return Project(target)

    def duplicate_project(self, name: str, new_name: str) -> Project:
        """Copy images, captions and settings; runs and sweeps stay with the original."""
        project, target = self.project(name), self._free_place(new_name)
        partial = target.with_name(f".{target.name}.partial")
        with disk_errors(target):
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(project.path, partial, ignore=shutil.ignore_patterns("runs", "sweeps", "tags"))
            partial.rename(target)
        return Project(target)

    def delete_project(self, name: str) -> Path:
        """Move a project to the trash and return where it lies now; `restore_project` brings it back."""
        project = self.project(name)
        project.check_idle("delete")
        target = self.trash / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}" / project.name
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            project.path.rename(target)
        return target

    def deleted_projects(self) -> list[Path]:
        """Projects in the trash, the latest first."""
        return sorted((file.parent for file in self.trash.glob("*/*/project.json")), reverse=True)

    def restore_project(self, trashed: Path) -> Project:
        """Bring a project back from the trash; raises InputError if its name is taken by now."""
        target = self._free_place(trashed.name)
        trashed.rename(target)
        return Project(target)

    def _free_place(self, name: str) -> Path:
        name = name.strip()
        if not re.fullmatch(r"\w[\w .\-]{0,59}", name) or name.endswith("."):
            raise InputError(
                f"Project name {name!r} cannot be a folder.",
                "Use letters, digits, spaces, dots, dashes and underscores, at most 60, and begin with a letter.",
                code="project_name",
            )
        target = self.path / "projects" / name
        if any(project.name.lower() == name.lower() for project in self.projects()) or target.exists():
            raise InputError(f"A project {name!r} exists already.", "Choose another name.", code="project_exists")
        return target


@dataclass(frozen=True)
class Project:
    """One project folder."""

    path: Path

    @property
    def name(self) -> str:
        """The project's name is its folder's."""
        return self.path.name

    @property
    def dataset_dir(self) -> Path:
        """The folder that trainers are pointed at: it holds the N_name folders."""
        return self.path / "dataset"

    @property
    def images_dir(self) -> Path:
        """Where imported images go: the first N_name folder, or `10_NAME` while there is none."""
        sets = [item for item in image_sets(self.dataset_dir) if item.path != self.dataset_dir]
        return sets[0].path if sets else self.dataset_dir / f"{DEFAULT_REPEATS}_{slugify(self.name) or 'images'}"

    @property
    def rejected_dir(self) -> Path:
        """What curation took out."""
        return self.path / "rejected"

    @property
    def loras_dir(self) -> Path:
        """LoRA files that came from elsewhere."""
        return self.path / "loras"

    def info(self) -> ProjectInfo:
        """What the user said; raises InputError if project.json is broken."""
        file = self.path / "project.json"
        try:
            return ProjectInfo.model_validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            raise InputError(
                f"{file} cannot be read: {error}", "Correct it, or remove it to start from defaults.", code="project"
            ) from error

    def save_info(self, info: ProjectInfo) -> None:
        """Write project.json."""
        write_text(self.path / "project.json", info.model_dump_json(indent=1))

    def runs(self) -> list[JobFolder]:
        """Training runs, oldest first."""
        return list(job_folders(self.path / "runs"))

    def sweeps(self) -> list[JobFolder]:
        """Sweeps, oldest first."""
        return list(job_folders(self.path / "sweeps"))

    def jobs(self) -> Iterator[JobFolder]:
        """Every job of the project."""
        for kind in ("tags", "runs", "sweeps"):
            yield from job_folders(self.path / kind)

    def new_run_dir(self, name: str) -> Path:
        """A fresh folder for a training run."""
        return numbered_folder(self.path / "runs", name)

    def new_sweep_dir(self) -> Path:
        """A fresh folder for a sweep."""
        return numbered_folder(self.path / "sweeps")

    def new_tag_dir(self) -> Path:
        """A fresh folder for a tagging job."""
        return numbered_folder(self.path / "tags")

    def check_idle(self, act: str) -> None:
        """Raise InputError if a job of this project is at work."""
        busy = [job.name for job in self.jobs() if job.status().state.is_active]
        if busy:
            raise InputError(
                f"Cannot {act} {self.name!r} while {', '.join(busy)} is at work.", "Stop it first.", code="busy"
            )


def records_folder(folder: Path) -> Path:
    """Where the studio keeps what belongs to a dataset: its project, if it is (a set of) a project's, else itself."""
    resolved = folder.resolve()
    dataset = resolved.parent if SET_FOLDER.match(resolved.name) else resolved
    in_project = dataset.name == "dataset" and (dataset.parent / "project.json").is_file()
    return dataset.parent if in_project else resolved


@dataclass(frozen=True)
class ImageSet:
    """One folder of images that share a number of repeats."""

    path: Path
    repeats: int
    concept: str


def image_sets(folder: Path) -> list[ImageSet]:
    """The `N_name` subfolders of `folder`; if there are none, `folder` itself (by its own name, else 1 repeat)."""
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    sets = [ImageSet(path, int(match[1]), match[2]) for path in subfolders if (match := SET_FOLDER.match(path.name))]
    if sets or not folder.is_dir():
        return sets
    own = SET_FOLDER.match(folder.resolve().name)
    return [ImageSet(folder, int(own[1]) if own else 1, own[2] if own else folder.resolve().name)]
