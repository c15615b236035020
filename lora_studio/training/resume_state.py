"""Save and load the training state from which a run resumes; it is written completely or not at all.

`training.state_folder` describes its files. A state is written to a temporary folder, flushed to disk and renamed; only
then are older states removed. The last two are kept, in case the most recent one is damaged.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora_studio.dataset.images.decode import file_sha256
from lora_studio.errors import disk_errors
from lora_studio.files import sync_folder
from lora_studio.training.progress import Progress
from lora_studio.training.state_folder import MANIFEST, OPTIMIZER, VERSION, WEIGHTS, finished_states

KEPT_STATES = 2


@dataclass(frozen=True)
class ResumeState:
    """The training state after `progress.step` optimizer steps; `weights` and `optimizer` contain tensors.

    `dataset` is the fingerprint of the images and captions, and `processes` the number of ranks. `events_size` is the
    size in bytes of the event log up to this state.
    """

    progress: Progress
    dataset: str
    steps_per_epoch: int | None
    processes: int
    events_size: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]


def save_state(folder: Path, state: ResumeState) -> Path:
    """Write a state below `folder`; remove all but the last two states, and the incomplete ones of killed processes.

    Raises DiskFullError if the disk is full, InputError if it is not writable; older states are then unchanged.
    """
    target = folder / f"{state.progress.step:08d}-{state.progress.epochs_finished:05d}"
    partial = folder / f"{target.name}.partial"
    buffer = io.BytesIO()
    torch.save(state.optimizer, buffer)
    contents = {WEIGHTS: safetensors.torch.save(state.weights), OPTIMIZER: buffer.getvalue()}
    manifest = {
        "version": VERSION,
        "progress": state.progress.to_dict(),
        "dataset": state.dataset,
        "steps_per_epoch": state.steps_per_epoch,
        "processes": state.processes,
        "events_size": state.events_size,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    with disk_errors(target):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            for name, content in [*contents.items(), (MANIFEST, json.dumps(manifest).encode())]:
                _write(partial / name, content)
            sync_folder(partial)
            if target.exists():
                shutil.rmtree(target)
            partial.rename(target)
            sync_folder(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    for old in [*finished_states(folder)[KEPT_STATES:], *folder.glob("*.partial")]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_state(folder: Path, *, on_damage: Callable[[str], None]) -> ResumeState | None:
    """Return the most recent valid state, None if there is none; report damaged ones to `on_damage` and skip them."""
    for path in finished_states(folder):
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, RuntimeError, EOFError, UnpicklingError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            on_damage(f"The saved training state {path.name} is damaged ({reason}); the previous one is used.")
    return None


def saved_weight_names(folder: Path) -> list[str]:
    """Return the names of the weights in the most recent state whose header can be read; empty if there is none."""
    for path in finished_states(folder):
        try:
            with safe_open(path / WEIGHTS, framework="pt") as file:
                return list(file.keys())
        except (OSError, SafetensorError):
            continue
    return []


def _read(path: Path) -> ResumeState:
    manifest = json.loads((path / MANIFEST).read_text("utf-8"))
    if manifest["version"] == 1:
        manifest |= _convert_version_1(manifest)
    elif manifest["version"] != VERSION:
        raise ValueError(f"version {manifest['version']} is unknown")
    for name, expected in manifest["files"].items():
        if file_sha256(path / name) != expected:
            raise ValueError(f"{name} has changed")
    return ResumeState(
        progress=Progress.from_dict(manifest["progress"]),
        dataset=manifest["dataset"],
        steps_per_epoch=manifest["steps_per_epoch"],
        processes=manifest["processes"],
        events_size=manifest["events_size"],
        weights=safetensors.torch.load_file(path / WEIGHTS),
        optimizer=torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True),
    )


def _convert_version_1(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of this version from a manifest of version 1, which had the losses in a list of events."""
    values, step = manifest["values"], manifest["step"]
    by_step = {event["step"]: event["loss"] for event in values["health"]["events"]}
    progress = {
        "step": step,
        "epochs_finished": manifest["epochs_finished"],
        "started": values["started"],
        "losses": [by_step.get(number) for number in range(1, step + 1)],
        "validation_losses": values.get("held_out", []),
        "reported_hints": values["health"]["said"],
    }
    if "timestep_losses" in values:
        progress["timestep_losses"] = values["timestep_losses"]
    return {
        "progress": progress,
        "dataset": values["dataset"],
        "steps_per_epoch": values.get("steps_per_epoch"),
        "processes": values.get("processes", 1),
        "events_size": values.get("events", 0),
    }


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
