"""What is wrong with the images of a job, for preflight: folders, masks, regularisation and held-out sets."""

from __future__ import annotations

from lora_studio.settings.choices import MaskedLoss
from lora_studio.settings.job_specs import TrainJob
from lora_studio.training.data.dataset import Dataset

SHOWN = 5  # problems of one kind that are listed


def folder_problems(job: TrainJob) -> list[str]:
    """Folders that cannot be read as asked."""
    found = []
    if not job.dataset.is_dir():
        found.append(f"dataset: there is no folder {job.dataset}. Give a folder with images.")
    prior = job.regularization
    if prior is None:
        return found
    if not prior.is_dir():
        found.append(f"regularization: there is no folder {prior}. Give a folder with images, or leave it empty.")
    elif prior.resolve() == job.dataset.resolve():
        found.append(
            "regularization is the dataset's own folder. Give images of the class that do not show what is to be "
            "learned, or leave it empty."
        )
    return found


def dataset_problems(job: TrainJob, dataset: Dataset) -> list[str]:
    """What cannot be trained on, a sentence each with the remedy."""
    recipe = job.recipe
    found = [f"dataset: {message} Remove or replace it." for message in dataset.unreadable[:SHOWN]]
    if (more := len(dataset.unreadable) - SHOWN) > 0:
        found.append(f"dataset: {more} more images cannot be read. `scan` lists them all.")
    if dataset.unreadable:
        return found
    if not dataset.items:
        return [
            f"dataset: {job.dataset} holds no images. Add some to it or to a subfolder named like 10_name "
            "(repeats_name); other subfolders are not read."
        ]
    if job.regularization is not None and not dataset.regularization:
        found.append(
            f"regularization: {job.regularization} holds no images. Add some to it or to a subfolder named like "
            "1_class, or leave it empty."
        )
    if recipe.validation_split and not dataset.held_out:
        found.append(
            f"validation_split is {recipe.validation_split:g}, but {len(dataset.items)} images, copies of one picture "
            "counted once, leave none to hold out. Set it to 0."
        )
    if recipe.masked_loss is not MaskedLoss.OFF and not any(item.mask for item in dataset.samples):
        where = (
            "no image is transparent anywhere"
            if recipe.masked_loss is MaskedLoss.ALPHA
            else "no image has a mask: neither NAME-masklabel.png nor mask/NAME.png beside it"
        )
        found.append(f"masked_loss is {recipe.masked_loss.value}, but {where}. Make masks, or set it to off.")
    return found
