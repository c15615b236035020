"""Continue a run for more epochs: a new run that begins with the weights, optimizer and losses of another one.

The other run stays as it is. Its states, samples and checkpoints are linked into the new folder (copied where the file
system has no links), and its events up to the state are copied, so that the new run shows the whole curve. It resumes
from there, with a learning rate that is planned again: see `training.optim.schedules.continue_schedule`.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from lora_studio.errors import InputError, disk_errors
from lora_studio.files import write_json
from lora_studio.planning.steps import text_encoder_stop, warmup_steps
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.subsets import Subset
from lora_studio.training.state_folder import MANIFEST, OPTIMIZER, STATE_FOLDER, VERSION, WEIGHTS, finished_states
from lora_studio.workspace.job_folder import JobFolder

COPIED_FILES = ("*.jsonl", "*.json")
OWN_FILES = {"status.json", "environment.json", "result.json", "notes.json"}  # of a run itself
LINKED_FILES = ("samples/*.png", "checkpoints/*.safetensors")


def continue_run(source: JobFolder, target: Path, more_epochs: int) -> JobFolder:
    """Create the run in `target` that trains `more_epochs` epochs beyond those that `source` has begun.

    Raises InputError if `source` is active, is not a training run, or has no saved state; nothing is created then.
    """
    job, states = _check(source, more_epochs)
    progress, steps_per_epoch = _progress_of(states[0])
    epochs = -(-progress["step"] // steps_per_epoch) + more_epochs
    continued = _continued_job(job, source.path.resolve(), epochs, _planned_steps(job, steps_per_epoch))
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        for pattern in COPIED_FILES:
            for file in source.path.glob(pattern):
                if file.name not in OWN_FILES:
                    shutil.copyfile(file, target / file.name)
        for pattern in LINKED_FILES:
            for file in source.path.glob(pattern):
                _link(file, target / file.relative_to(source.path))
        for state in states:
            _link_state(state, target / state.relative_to(source.path))
    return JobFolder.create(target, continued)


def epochs_of(folder: JobFolder) -> int | None:
    """Return the epochs that a run has begun up to its last saved state; None if it has none to continue from."""
    for state in finished_states(folder.path / STATE_FOLDER):
        try:
            progress, steps_per_epoch = _progress_of(state)
        except InputError:
            continue
        return int(-(-progress["step"] // steps_per_epoch)) or None
    return None


def _check(source: JobFolder, more_epochs: int) -> tuple[TrainJob, list[Path]]:
    """Return the job and the states of a run that can be continued; raise InputError for any other."""
    job = source.job()
    if not isinstance(job, TrainJob):
        raise InputError(f"{source.path} is not a training run.", "Give the folder of one.", code="job_kind")
    if more_epochs < 1:
        raise InputError(f"more_epochs is {more_epochs}, which is below 1.", "Use for example 5.", code="epochs")
    if source.status().state.is_active:
        raise InputError(
            f"{source.name} is still running.", "Wait for its end, or stop it; then continue it.", code="busy"
        )
    states = [state for state in finished_states(source.path / STATE_FOLDER) if _is_usable(state)]
    if not states:
        raise InputError(
            f"{source.name} has no saved training state to continue from.",
            "Start a new run from its LoRA instead: network_weights.",
            code="no_state",
        )
    return job, states


def _is_usable(state: Path) -> bool:
    try:
        progress, _ = _progress_of(state)
    except InputError:
        return False
    return bool(progress["step"] > 0)


def _progress_of(state: Path) -> tuple[dict[str, Any], int]:
    """Return the progress in a state's manifest and its steps per epoch. Raises InputError if they cannot be read."""
    try:
        manifest = json.loads((state / MANIFEST).read_bytes())
        if manifest["version"] != VERSION:
            raise ValueError(f"version {manifest['version']}")
        progress, steps_per_epoch = manifest["progress"], int(manifest["steps_per_epoch"])
        int(progress["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{state / MANIFEST} cannot be read: {error}.", "Start a new run.", code="no_state") from error
    return progress, steps_per_epoch


def _link_state(state: Path, target: Path) -> None:
    """Link a state's tensors, and write its manifest with the step at which the schedule is planned again."""
    for name in (WEIGHTS, OPTIMIZER):
        _link(state / name, target / name)
    manifest = json.loads((state / MANIFEST).read_bytes())
    manifest["progress"]["continued"] = {"step": manifest["progress"]["step"]}
    write_json(target / MANIFEST, manifest)


def _link(file: Path, target: Path) -> None:
    """Link a file that is only ever replaced as a whole; copy it where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _planned_steps(job: TrainJob, steps_per_epoch: int) -> int:
    total = steps_per_epoch * job.recipe.epochs
    return min(total, job.recipe.max_train_steps or total)


def _continued_job(job: TrainJob, source: Path, epochs: int, planned_steps: int) -> TrainJob:
    """Return the job for more epochs. Shares of a run become the steps that they were in the run of `planned_steps`.

    Raises ConfigError if that are more epochs than a run can have.
    """
    recipe = job.recipe
    changes: dict[str, Any] = {"epochs": epochs, "max_train_steps": None}
    if recipe.stop_text_encoder_training:
        stop = text_encoder_stop(recipe.stop_text_encoder_training, planned_steps)
        changes["stop_text_encoder_training"] = float(stop)
    changes |= _whole_tag_warmup({"token_warmup_step": recipe.token_warmup_step}, planned_steps)
    subsets = [
        Subset.model_validate({**dict(subset), "settings": _whole_tag_warmup(subset.settings, planned_steps)})
        for subset in job.subsets
    ]
    changed = Recipe.parse(recipe.model_dump() | changes)
    return job.model_copy(update={"recipe": changed, "subsets": subsets, "parent": source, "continues": True})


def _whole_tag_warmup(settings: dict[str, Any], planned_steps: int) -> dict[str, Any]:
    """Return settings whose tag warmup, if they have one, is in steps."""
    warmup = settings.get("token_warmup_step")
    return {**settings, "token_warmup_step": float(warmup_steps(warmup, planned_steps))} if warmup else settings
