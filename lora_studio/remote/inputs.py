"""Collect what a training needs on another machine: images, captions, masks, weights and the job itself.

In the repository the files are in `inputs/`; paths of the uploaded job are relative to that folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lora_studio.dataset.captions.extension import RECORD_FILE
from lora_studio.dataset.images.decode import IMAGE_SUFFIXES
from lora_studio.dataset.images.masks import mask_files
from lora_studio.dataset.marks import MARKS_FILE
from lora_studio.dataset.training_images import DatasetImages, read_images
from lora_studio.errors import ConfigError, InputError
from lora_studio.remote.wheel import WHEEL_NAME, build_wheel
from lora_studio.settings.choices import Tracker
from lora_studio.settings.job_specs import TrainJob, job_to_toml
from lora_studio.workspace.project import records_folder

INPUTS = "inputs"
JOB_FILE = "job.toml"
SCRIPT_FILE = "run.py"  # at the top of the repository, beside the wheel
MODELS = "models"
PROJECT_FILE = "project.json"
Content = Path | bytes


def collect_inputs(job: TrainJob) -> dict[str, Content]:
    """Return the files to upload by their path in the repository. Raises ConfigError with all errors of the job."""
    if problems := _problems(job):
        raise ConfigError(problems, "Change these settings, or train on this computer.")
    files: dict[str, Content] = {}
    folders: dict[Path, str] = {}
    _add_images(files, folders, job)
    if job.regularization is not None:
        found = read_images(job.regularization, caption_extension=job.recipe.caption_extension)
        _add_folder(files, folders, job.regularization, f"regularization/{job.regularization.name}", found)
    changes: dict[str, object] = {"parent": None, "dataset": Path(folders[job.dataset])}
    if job.regularization is not None:
        changes["regularization"] = Path(folders[job.regularization])
    if job.network_weights is not None:
        place = f"weights/{job.network_weights.name}"
        files[f"{INPUTS}/{place}"] = job.network_weights
        changes["network_weights"] = Path(place)
    for name in ("base", "vae"):
        value = getattr(job, name)
        if value and (local := Path(value).expanduser()).exists():
            changes[name] = _add_model(files, local)
    changes["subsets"] = [
        subset.model_copy(update={"image_dir": Path(folders[subset.image_dir])}) for subset in job.subsets
    ]
    files[f"{INPUTS}/{JOB_FILE}"] = job_to_toml(job.model_copy(update=changes)).encode()
    files[WHEEL_NAME] = build_wheel()
    files[SCRIPT_FILE] = Path(__file__).with_name("job_script.py")
    return files


def with_input_paths(job: TrainJob, inputs: Path) -> TrainJob:
    """Return an uploaded job with absolute paths, where its files were downloaded to `inputs`."""
    job = job.with_paths(lambda path: inputs / path)
    models = {name: getattr(job, name) or "" for name in ("base", "vae")}
    found = {name: str(inputs / value) for name, value in models.items() if value.startswith(f"{MODELS}/")}
    return job.model_copy(update=found)


def _problems(job: TrainJob) -> list[str]:
    problems = []
    if job.continues:
        problems.append("continues is true: a run for more epochs needs the training state of this computer")
    if job.recipe.log_with in (Tracker.WANDB, Tracker.TRACKIO):
        problems.append(f"log_with is {job.recipe.log_with}: a job does not get the key of a tracker; set none")
    if job.recipe.feature_model and Path(job.recipe.feature_model).expanduser().exists():
        problems.append(f"feature_model {job.recipe.feature_model} is a folder of this computer; name a Hub repository")
    if job.network_weights is not None and not job.network_weights.is_file():
        problems.append(f"network_weights {job.network_weights} does not exist")
    return problems


def _add_images(files: dict[str, Content], folders: dict[Path, str], job: TrainJob) -> None:
    """Add the images that train, with the project's marks: they have the focus points of crops."""
    records = records_folder(job.dataset)
    top = records if records != job.dataset.resolve() else job.dataset.resolve().parent
    place = f"dataset/{job.dataset.resolve().relative_to(top).as_posix()}"
    folders[job.dataset] = place
    extension = job.recipe.caption_extension
    if not job.subsets:
        _add_folder(files, folders, job.dataset, place, read_images(job.dataset, caption_extension=extension))
    for number, subset in enumerate(job.subsets):
        own = f"subsets/{number}/{subset.image_dir.name}"
        if subset.image_dir.resolve().is_relative_to(top):
            own = f"dataset/{subset.image_dir.resolve().relative_to(top).as_posix()}"
        found = read_images(job.dataset, caption_extension=extension, subsets=[subset])
        _add_folder(files, folders, subset.image_dir, own, found)
    below = "" if records == job.dataset.resolve() else "dataset"
    for name in (MARKS_FILE, PROJECT_FILE, RECORD_FILE):
        if (records / name).is_file():
            files[f"{INPUTS}/{below or place}/{name}"] = records / name


def _add_folder(
    files: dict[str, Content], folders: dict[Path, str], folder: Path, place: str, found: DatasetImages
) -> None:
    """Add the images of a folder with their captions and masks. Raises ConfigError if one cannot be read."""
    if found.unreadable:
        raise ConfigError(found.unreadable.values(), "Remove or repair these images.")
    if not found.images:
        raise InputError(f"There are no images in {str(folder)!r}.", "Give a folder with images.", code="no_images")
    folders[folder] = place
    for file in _files_of([image.path for image in found.images]):
        files[f"{INPUTS}/{place}/{file.relative_to(folder).as_posix()}"] = file


def _files_of(images: list[Path]) -> Iterable[Path]:
    """Yield images, the text files with their names, and their masks."""
    yield from images
    stems = {(image.parent, image.stem) for image in images}
    for parent in {image.parent for image in images}:
        for path in sorted(parent.iterdir()):
            if path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES and (parent, path.stem) in stems:
                yield path
    for image in images:
        yield from mask_files(image)


def _add_model(files: dict[str, Content], path: Path) -> str:
    """Add a base model or VAE of this computer, and return its path below the inputs."""
    place = f"{MODELS}/{path.name}"
    for file in [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file()):
        below = "" if path.is_file() else f"/{file.relative_to(path).as_posix()}"
        files[f"{INPUTS}/{place}{below}"] = file
    return place
