"""A training state is saved completely or not at all, and only valid states are loaded."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch

from lora_studio.errors import DiskFullError
from lora_studio.training import resume_state as checkpoints
from lora_studio.training.progress import Progress
from lora_studio.training.resume_state import ResumeState, load_state, save_state


def make_state(step: int, epochs: int = 0) -> ResumeState:
    weights = {"unet/a/A": torch.full((2, 3), float(step))}
    optimizer = {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]}}
    progress = Progress(step=step, epochs_finished=epochs, losses=[0.1] * step, started=5.0)
    return ResumeState(progress, "images", 4, 1, 1000, weights, optimizer)


def load(folder: Path, damage: list[str] | None = None) -> ResumeState | None:
    found: list[str] = [] if damage is None else damage
    state = load_state(folder, on_damage=found.append)
    assert damage is not None or not found
    return state


def test_loads_what_was_saved(tmp_path: Path) -> None:
    assert load(tmp_path) is None
    save_state(tmp_path, make_state(7, 2))
    state = load(tmp_path)
    assert state is not None
    assert state.progress == make_state(7, 2).progress
    assert (state.dataset, state.steps_per_epoch, state.processes, state.events_size) == ("images", 4, 1, 1000)
    assert torch.equal(state.weights["unet/a/A"], torch.full((2, 3), 7.0))
    assert state.optimizer["optimizer"]["param_groups"] == [{"lr": 1e-3}]
    assert torch.equal(state.optimizer["optimizer"]["state"][0]["exp_avg"], torch.ones(3))


def test_keeps_the_last_two_states(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save_state(tmp_path, make_state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000010-00000", "00000100-00000"]
    state = load(tmp_path)
    assert state is not None
    assert state.progress.step == 100


@pytest.mark.parametrize("name", ["lora.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_a_damaged_state_is_reported_and_the_previous_one_loaded(tmp_path: Path, name: str, harm: str) -> None:
    save_state(tmp_path, make_state(1))
    file = save_state(tmp_path, make_state(2)) / name
    content = bytearray(file.read_bytes())
    if harm == "gone":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[5] ^= 0xFF
        file.write_bytes(content)
    told: list[str] = []
    state = load(tmp_path, told)
    assert state is not None
    assert state.progress.step == 1
    assert len(told) == 1
    assert "00000002-00000" in told[0]


def test_a_pickle_never_runs_code(tmp_path: Path) -> None:
    """Not even one whose hash matches: states are read as plain tensors and numbers."""
    folder = save_state(tmp_path, make_state(1))
    evil = pickle.dumps({"optimizer": pytest.fail})
    (folder / "optimizer.pt").write_bytes(evil)
    manifest = json.loads((folder / "state.json").read_text("utf-8"))
    manifest["files"]["optimizer.pt"] = hashlib.sha256(evil).hexdigest()
    (folder / "state.json").write_text(json.dumps(manifest), "utf-8")
    told: list[str] = []
    assert load(tmp_path, told) is None
    assert len(told) == 1


def test_a_full_disk_keeps_previous_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, make_state(1))
    save_state(tmp_path, make_state(2))

    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "_write", full)
    with pytest.raises(DiskFullError):
        save_state(tmp_path, make_state(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001-00000", "00000002-00000"]
    state = load(tmp_path)
    assert state is not None
    assert state.progress.step == 2


def test_a_state_of_version_1_is_converted(tmp_path: Path) -> None:
    """It had the losses as events; step 2 was skipped."""
    file = save_state(tmp_path, make_state(3, 1)) / "state.json"
    manifest = json.loads(file.read_text("utf-8"))
    for name in ("progress", "dataset", "steps_per_epoch", "processes", "events_size"):
        del manifest[name]
    steps = [{"event": "step", "step": 1, "loss": 0.1}, {"event": "step", "step": 3, "loss": 0.3}]
    values = {
        "dataset": "images",
        "epoch_losses": [0.3],
        "held_out": [{"step": 0, "epoch": 0, "loss": 0.5}],
        "last_loss": 0.3,
        "steps_per_epoch": 2,
        "started": 5.0,
        "health": {"events": steps, "said": ["plateau"]},
        "timestep_losses": {"sums": [1.0] * 10, "counts": [2] * 10},
        "events": 77,
        "processes": 2,
    }
    file.write_text(json.dumps(manifest | {"version": 1, "step": 3, "epochs_finished": 1, "values": values}), "utf-8")
    state = load(tmp_path)
    assert state is not None
    assert (state.dataset, state.steps_per_epoch, state.processes, state.events_size) == ("images", 2, 2, 77)
    progress = state.progress
    assert (progress.step, progress.epochs_finished, progress.started) == (3, 1, 5.0)
    assert progress.losses == [0.1, None, 0.3]
    assert [entry.loss for entry in progress.validation_losses] == [0.5]
    assert progress.reported_hints == ["plateau"]
    assert progress.timestep_losses.counts == [2] * 10
