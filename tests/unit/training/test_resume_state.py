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
from lora_studio.training.resume_state import ResumeState, load_state, save_state


def make_state(step: int, epochs: int = 0) -> ResumeState:
    weights = {"unet/a/A": torch.full((2, 3), float(step))}
    optimizer = {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]}}
    return ResumeState(step, epochs, {"epoch_losses": [0.1, 0.2]}, weights, optimizer)


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
    assert (state.step, state.epochs_finished, state.values) == (7, 2, {"epoch_losses": [0.1, 0.2]})
    assert torch.equal(state.weights["unet/a/A"], torch.full((2, 3), 7.0))
    assert state.optimizer["optimizer"]["param_groups"] == [{"lr": 1e-3}]
    assert torch.equal(state.optimizer["optimizer"]["state"][0]["exp_avg"], torch.ones(3))


def test_keeps_the_last_two_states(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save_state(tmp_path, make_state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000010-00000", "00000100-00000"]
    state = load(tmp_path)
    assert state is not None
    assert state.step == 100


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
    assert state.step == 1
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
    assert state.step == 2
