"""The progress of a run: stored values, and what is derived from them."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.planning.steps import count_steps
from lora_studio.training.progress import Progress, ValidationLoss

LOSSES = st.lists(st.none() | st.floats(0, 10))


@given(losses=LOSSES, validation=st.lists(st.tuples(st.integers(0, 50), st.floats(0, 10))), epochs=st.integers(0, 9))
def test_stored_progress_is_restored(
    losses: list[float | None], validation: list[tuple[int, float]], epochs: int
) -> None:
    progress = Progress(step=len(losses), epochs_finished=epochs, losses=losses, reported_hints=["rising"])
    progress.validation_losses = [ValidationLoss(step=step, epoch=1, loss=loss) for step, loss in validation]
    progress.timestep_losses.add([3, 999], [0.5, 1.5])
    progress.image_losses.add(["a.png", None], [0, 9], [0.5, 1.5])
    assert Progress.from_dict(json.loads(json.dumps(progress.to_dict()))) == progress


@given(losses=LOSSES)
def test_the_last_loss_is_the_last_finite_one(losses: list[float | None]) -> None:
    finite = [loss for loss in losses if loss is not None]
    assert Progress(losses=losses).last_loss == (finite[-1] if finite else None)


@pytest.mark.parametrize(("step", "epoch", "due"), [(0, 1, 0), (3, 1, 0), (4, 1, 1), (5, 2, 1), (10, 3, 3)])
def test_epochs_are_due_when_their_last_step_is_taken(step: int, epoch: int, due: int) -> None:
    """Of 4 steps each; max_train_steps cuts the third one short."""
    counts = count_steps({"bucket": 4}, batch_size=1, epochs=3, max_train_steps=10)
    progress = Progress(step=step)
    assert (progress.epoch(counts), progress.epochs_due(counts)) == (epoch, due)


def test_the_losses_of_an_unfinished_epoch_are_those_since_the_last_finished_one() -> None:
    counts = count_steps({"bucket": 2}, batch_size=1, epochs=3)
    progress = Progress(step=5, epochs_finished=1, losses=[1.0, 2.0, 3.0, None, 5.0])
    assert progress.losses_of_epoch(counts) == [3.0, 5.0]


def test_only_finite_validation_losses_are_judged_the_last_one_of_a_step() -> None:
    found = [(4, 0.5), (0, 0.7), (8, math.nan), (4, 0.6)]
    progress = Progress(validation_losses=[ValidationLoss(step=step, epoch=0, loss=loss) for step, loss in found])
    assert list(progress.validation_by_step.items()) == [(0, 0.7), (4, 0.6)]
