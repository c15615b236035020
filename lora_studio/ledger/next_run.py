"""What a run that is not started yet would train on, compared with the run that it is made from."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from lora_studio.dataset.training_images import read_images
from lora_studio.errors import InputError
from lora_studio.ledger.data import RunData, read_data
from lora_studio.ledger.records import DataChange, base_metadata, data_changes, input_changes
from lora_studio.models.locate import cached_base, resolve_base
from lora_studio.models.weights_hash import quick_hashes
from lora_studio.settings.job_specs import TrainJob
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home


def changes_to_parent(job: TrainJob, parent: JobFolder, before: TrainJob, home: Home) -> list[DataChange]:
    """Return the inputs, base weights, images and captions of a job that differ from those of the run `parent`."""
    found = input_changes(job, before)
    if job.base == before.base:
        found += base_changes(job.base, parent, before, home)
    known = read_data(parent.path)
    return found + (data_changes(data_of(job), known) if known is not None else [])


def data_of(job: TrainJob) -> RunData | None:
    """Return the images and captions that a job would train on; None if some of its files cannot be read.

    Images that the last scan has read are not hashed again.
    """
    recipe = job.recipe
    own = [subset for subset in job.subsets if not subset.is_reg]
    priors = [subset for subset in job.subsets if subset.is_reg]
    images: list[tuple[str, str]] = []
    with suppress(InputError, OSError):
        dataset = read_images(job.dataset, caption_extension=recipe.caption_extension, subsets=own)
        prior = None
        if priors or job.regularization is not None:
            folder = job.regularization or job.dataset
            prior = read_images(folder, caption_extension=recipe.caption_extension, subsets=priors)
        split = dataset.split(recipe, prior)
        manifests = ((split.training, job.trigger_word, dataset), (split.validation, job.trigger_word, dataset))
        for repeated, trigger_word, source in (*manifests, (split.regularization, "", prior)):
            for image, _ in repeated:
                assert source is not None
                assert source.manifest is not None
                sha256 = image.sha256 or source.manifest.sha256_of(image.path)
                images.append((sha256, image.caption_in(recipe, trigger_word)))
        return RunData(tuple(sorted(images)))
    return None


def base_changes(base: str, parent: JobFolder, before: TrainJob, home: Home) -> list[DataChange]:
    """Return whether the weights of a base are others than when a run was trained on it; [] if that is not known."""
    metadata = base_metadata(parent, before)
    with suppress(InputError, OSError):
        source = cached_base(resolve_base(base, home))
        if source is None or not Path(source.location).exists():
            return []
        hashes = quick_hashes(source)
        for now, key in ((hashes.legacy, "ss_sd_model_hash"), (hashes.new, "ss_new_sd_model_hash")):
            then = metadata.get(key)
            if now and then and then != now:
                return [DataChange("base weights", f"{then[:12]} → {now[:12]}")]
    return []
