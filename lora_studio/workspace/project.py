"""The studio's home and its projects; only this module knows their layout on disk.

```
$LORA_STUDIO_HOME                    default ~/lora-studio
  projects/NAME/
    project.json                     trigger word, kind, base model, notes, changes to the planned recipe
    dataset/ 10_NAME/                images with captions beside them: the layout that kohya's tools read
    rejected/                        images set aside by curation
    scan.json                        the result of the last scan: can be rebuilt
    marks.json                       the user's marks: reviewed captions, images to keep
    moved_paths.json                 where files outside of the project are on this machine
    caption_edits/                   the most recent caption edits, for undo
    runs/001-NAME/                   job folders of training
    loras/                           other LoRA files, to be tested
    exports/001/                     settings for kohya's sd-scripts
    sweeps/001/                      job folders of sweeps
    tags/001/                        job folders of tagging
    first_tests/001/                 job folders of sweeps of the bare base, before a training
  downloads/NAME/                    job folders of base models that were downloaded
  cache/                             latents, text embeddings, tags, thumbnails: safe to delete
  models/                            base models that the user put here
  model-folders.txt                  more folders with base models, one per line
  notify.toml                        what to call when a long job has ended, see notify
  queue.json                         the runs that wait for their turn, in order
  queue/                             tickets and lock of GPU jobs
  trash/                             deleted projects, which can be restored
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
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError

from lora_studio.errors import InputError, disk_errors
from lora_studio.file_lock import change_file
from lora_studio.files import write_text
from lora_studio.settings.choices import LoraKind
from lora_studio.settings.declare import Settings
from lora_studio.settings.subsets import Subset
from lora_studio.workspace.job_folder import JobFolder, JobState, job_folders, numbered_folder, slugify
from lora_studio.workspace.notify import NOTIFY_FILE

DEFAULT_REPEATS = 10
SET_FOLDER = re.compile(r"^(\d+)_(.+)$")


class ProjectInfo(Settings):
    """The content of project.json: the settings of a project. A plan without a project uses the same defaults.

    `expected_images` counts only while the dataset is empty. `recipe` has the recipe settings that the user changed, by
    name, as plain values; the plan chooses all others. null in the file means none. `subsets` have repeats and settings
    of their own; their `image_dir` is the name of a set in the dataset's folder. `parent` is the name of the run that
    the next run is made from: the last one that was started, or that was edited since.
    """

    kind: LoraKind = LoraKind.CHARACTER
    trigger_word: str = ""
    base: str = "SDXL 1.0"
    expected_images: int = 20
    vram_gib: float | None = None
    hours: float | None = None
    notes: str = ""
    recipe: Annotated[dict[str, Any], BeforeValidator(lambda given: given or {})] = {}
    subsets: list[Subset] = []
    parent: str = ""


JOB_FOLDERS = ("tags", "runs", "sweeps", "measurements", "first_tests")  # of a project


@dataclass(frozen=True)
class Home:
    """The folder that contains everything the studio stores."""

    path: Path

    @classmethod
    def locate(cls, given: Path | str | None = None) -> Home:
        """Return the home at `given`, else at $LORA_STUDIO_HOME, else at ~/lora-studio."""
        text = given or os.environ.get("LORA_STUDIO_HOME") or Path.home() / "lora-studio"
        return cls(Path(text).expanduser().resolve())

    def check_private(self) -> None:
        """Raise InputError if the home is in the working or the temporary directory, whose files Gradio serves."""
        for public, name in ((Path.cwd(), "working"), (Path(tempfile.gettempdir()), "temporary")):
            if self.path.is_relative_to(public.resolve()):
                raise InputError(
                    f"The studio's home {self.path} is in the {name} directory, which the web server can serve.",
                    "Set LORA_STUDIO_HOME or --home to another folder, like ~/lora-studio.",
                    code="home_public",
                )

    @property
    def cache(self) -> Path:
        """The folder of everything that can be rebuilt."""
        return self.path / "cache"

    @property
    def thumbnails(self) -> Path:
        """The folder of WebP thumbnails: the only one that the browser may read."""
        return self.cache / "thumbnails"

    @property
    def models(self) -> Path:
        """The folder of base models."""
        return self.path / "models"

    @property
    def model_folders(self) -> Path:
        """The file with more folders to look for base models in, one per line."""
        return self.path / "model-folders.txt"

    def downloads(self) -> list[JobFolder]:
        """Return the downloads of base models."""
        return list(job_folders(self.path / "downloads"))

    def download_of(self, base: str) -> JobFolder:
        """Return the job folder of a base model's download, which may not exist."""
        return JobFolder(self.path / "downloads" / slugify(base))

    @property
    def presets(self) -> Path:
        """The folder of the user's own presets."""
        return self.path / "presets"

    @property
    def speeds(self) -> Path:
        """The file with the seconds per step of this machine's runs."""
        return self.path / "speeds.jsonl"

    @property
    def queue(self) -> Path:
        """The folder of the tickets and the lock of GPU jobs."""
        return self.path / "queue"

    @property
    def notify_file(self) -> Path:
        """The file with the command and webhook to call when a long job has ended."""
        return self.path / NOTIFY_FILE

    @property
    def trash(self) -> Path:
        """The folder of deleted projects."""
        return self.path / "trash"

    def projects(self) -> list[Project]:
        """Return all projects, sorted by name."""
        folder = self.path / "projects"
        found = folder.iterdir() if folder.is_dir() else iter(())
        return sorted(
            (Project(path) for path in found if path.name[0] != "." and (path / "project.json").is_file()),
            key=lambda project: project.name.lower(),
        )

    def recent_projects(self) -> list[Project]:
        """Return all projects, the one that was last worked on first."""
        return sorted(self.projects(), key=lambda project: project.last_used, reverse=True)

    def project(self, name: str) -> Project:
        """Return an existing project by name; raise InputError if it does not exist."""
        if name not in {project.name for project in self.projects()}:
            raise InputError(f"There is no project {name!r}.", "Choose one from the list.", code="no_project")
        return Project(self.path / "projects" / name)

    def create_project(self, name: str, info: ProjectInfo | None = None) -> Project:
        """Create an empty project; raise InputError if the name is invalid or taken."""
        target = self.new_project_path(name)
        project = Project(target)
        with disk_errors(target):
            project.images_dir.mkdir(parents=True, exist_ok=True)
        project.save_info(info or ProjectInfo())
        return project

    def rename_project(self, name: str, new_name: str) -> Project:
        """Rename a project; raise InputError if one of its jobs is running or the new name is invalid or taken."""
        project, target = self.project(name), self.new_project_path(new_name)
        project.check_idle("rename")
        project.path.rename(target)
        return Project(target)

    def duplicate_project(self, name: str, new_name: str) -> Project:
        """Copy images, captions and settings into a new project; runs and sweeps are not copied."""
        project, target = self.project(name), self.new_project_path(new_name)
        partial = target.with_name(f".{target.name}.partial")
        with disk_errors(target):
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(project.path, partial, ignore=shutil.ignore_patterns(*JOB_FOLDERS, "exports"))
            partial.rename(target)
        return Project(target)

    def delete_project(self, name: str) -> Path:
        """Move a project to the trash and return its new path; `restore_project` moves it back."""
        project = self.project(name)
        project.check_idle("delete")
        target = self.trash / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}" / project.name
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            project.path.rename(target)
        return target

    def deleted_projects(self) -> list[Path]:
        """Return the folders of deleted projects, most recent first."""
        return sorted((file.parent for file in self.trash.glob("*/*/project.json")), reverse=True)

    def restore_project(self, trashed: Path) -> Project:
        """Move a project back from the trash; raise InputError if its name is taken."""
        target = self.new_project_path(trashed.name)
        trashed.rename(target)
        return Project(target)

    def new_project_path(self, name: str) -> Path:
        """Return the folder of a new project; raise InputError if the name is invalid or taken."""
        name = name.strip()
        if not re.fullmatch(r"\w[\w .\-]{0,59}", name) or name.endswith("."):
            raise InputError(
                f"Project name {name!r} is not a valid folder name.",
                "Use letters, digits, spaces, dots, dashes and underscores, at most 60, and begin with a letter.",
                code="project_name",
            )
        target = self.path / "projects" / name
        if any(project.name.lower() == name.lower() for project in self.projects()) or target.exists():
            raise InputError(f"A project {name!r} already exists.", "Choose another name.", code="project_exists")
        return target


@dataclass(frozen=True)
class Project:
    """One project folder."""

    path: Path

    @property
    def name(self) -> str:
        """The name of the project, which is its folder's."""
        return self.path.name

    @property
    def last_used(self) -> float:
        """The time of the last change of settings, images or jobs, in seconds since 1970; captions do not count."""
        folders = (self.path / name for name in ("project.json", "dataset", "rejected", *JOB_FOLDERS))
        places = (self.path, self.images_dir, *folders)
        return max((place.stat().st_mtime for place in places if place.exists()), default=0.0)

    @property
    def home(self) -> Home:
        """The home that the project is in."""
        return Home(self.path.parents[1])

    @property
    def dataset_dir(self) -> Path:
        """The dataset folder for training, which contains the N_name folders."""
        return self.path / "dataset"

    @property
    def images_dir(self) -> Path:
        """The folder for imported images: the first N_name folder, else `10_NAME`."""
        sets = [item for item in image_sets(self.dataset_dir) if item.path != self.dataset_dir]
        return sets[0].path if sets else self.dataset_dir / f"{DEFAULT_REPEATS}_{slugify(self.name) or 'images'}"

    @property
    def rejected_dir(self) -> Path:
        """The folder of images that curation set aside."""
        return self.path / "rejected"

    @property
    def loras_dir(self) -> Path:
        """The folder of LoRA files that were not trained in the project."""
        return self.path / "loras"

    def info(self) -> ProjectInfo:
        """Read project.json; raise InputError if it is broken."""
        file = self.path / "project.json"
        try:
            return ProjectInfo.model_validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            raise InputError(
                f"{file} cannot be read: {error}", "Correct it, or remove it to start from defaults.", code="project"
            ) from error

    def change_info(self, **changes: Any) -> ProjectInfo:
        """Set some settings in project.json, as it is now, and return all; those that another studio set are kept.

        The values are not validated. Raises InputError or DiskFullError.
        """
        with change_file(self.path / "project.json"):
            before = self.info()
            after = before.model_copy(update=changes)
            if after != before:
                self.save_info(after)
        return after

    def save_info(self, info: ProjectInfo) -> None:
        """Write all settings of a new project into project.json."""
        write_text(self.path / "project.json", info.model_dump_json(indent=1))

    def runs(self) -> list[JobFolder]:
        """Return the training runs, oldest first."""
        return list(job_folders(self.path / "runs"))

    def sweeps(self) -> list[JobFolder]:
        """Return the sweeps, oldest first."""
        return list(job_folders(self.path / "sweeps"))

    def measurements(self) -> list[JobFolder]:
        """Return the measurements of a step's time, oldest first."""
        return list(job_folders(self.path / "measurements"))

    def first_tests(self) -> list[JobFolder]:
        """Return the tests of the bare base, oldest first."""
        return list(job_folders(self.path / "first_tests"))

    def jobs(self) -> Iterator[JobFolder]:
        """Yield every job of the project."""
        for kind in JOB_FOLDERS:
            yield from self.jobs_in(kind)

    def jobs_in(self, kind: str) -> Iterator[JobFolder]:
        """Yield the jobs of one of JOB_FOLDERS, oldest first."""
        yield from job_folders(self.path / kind)

    def new_run_dir(self, name: str) -> Path:
        """Create a folder for a training run."""
        return numbered_folder(self.path / "runs", name)

    def new_sweep_dir(self) -> Path:
        """Create a folder for a sweep."""
        return numbered_folder(self.path / "sweeps")

    def new_measurement_dir(self) -> Path:
        """Create a folder for a measurement of a step's time."""
        return numbered_folder(self.path / "measurements")

    def new_first_test_dir(self) -> Path:
        """Create a folder for a test of the bare base."""
        return numbered_folder(self.path / "first_tests")

    def new_export_dir(self) -> Path:
        """Create a folder for exported settings."""
        return numbered_folder(self.path / "exports")

    def subsets(self, info: ProjectInfo) -> list[Subset]:
        """Return the sets of the dataset with the repeats and settings that `info` has for them.

        [] if it has none, so that each has those of the recipe.
        """
        known = {subset.image_dir.name: subset for subset in info.subsets}
        sets = image_sets(self.dataset_dir)
        if not any(item.path.name in known for item in sets):
            return []
        return [
            known[item.path.name].model_copy(update={"image_dir": item.path})
            if item.path.name in known
            else Subset(image_dir=item.path, num_repeats=item.repeats)
            for item in sets
        ]

    def new_tag_dir(self) -> Path:
        """Create a folder for a tagging job."""
        return numbered_folder(self.path / "tags")

    def check_idle(self, act: str) -> None:
        """Raise InputError if a job of this project is running or waits; `act` is what the caller wants to do."""
        states = [(job.name, job.status().state) for job in self.jobs()]
        busy = [name for name, state in states if state.is_active or state is JobState.WAITING]
        if busy:
            raise InputError(
                f"Cannot {act} {self.name!r} while {', '.join(busy)} is running or in the queue.",
                "Stop it, or remove it from the queue, first.",
                code="busy",
            )


def records_folder(folder: Path) -> Path:
    """Return where the records of a dataset are kept: in its project, or in the folder itself if it has none."""
    resolved = folder.resolve()
    dataset = resolved.parent if SET_FOLDER.match(resolved.name) else resolved
    in_project = dataset.name == "dataset" and (dataset.parent / "project.json").is_file()
    return dataset.parent if in_project else resolved


@dataclass(frozen=True)
class ImageSet:
    """A folder of images with its repeats and concept, as in kohya's `10_name`, or from the settings of a subset."""

    path: Path
    repeats: int
    concept: str
    subset: Subset | None = None

    @classmethod
    def of(cls, subset: Subset) -> ImageSet:
        """Return the folder of a subset; without class tokens its concept is the folder's name."""
        named = SET_FOLDER.match(subset.image_dir.name)
        concept = subset.class_tokens or (named[2] if named else subset.image_dir.name)
        return cls(subset.image_dir, subset.num_repeats, concept, subset)


def image_sets(folder: Path) -> list[ImageSet]:
    """Return the `N_name` subfolders of `folder`; without any, `folder` itself (repeats from its name, else 1)."""
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    sets = [ImageSet(path, int(match[1]), match[2]) for path in subfolders if (match := SET_FOLDER.match(path.name))]
    if sets or not folder.is_dir():
        return sets
    own = SET_FOLDER.match(folder.resolve().name)
    return [ImageSet(folder, int(own[1]) if own else 1, own[2] if own else folder.resolve().name)]
