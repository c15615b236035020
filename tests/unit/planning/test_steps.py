from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.errors import InputError
from lora_studio.planning.steps import count_steps


def simulate(buckets: dict[int, int], batch: int, accumulation: int, epochs: int, limit: int | None) -> dict[str, int]:
    """Walk through a run, image by image."""
    steps, batches, empty, begun = 0, 0, 0, 0
    per_epoch = 0
    for epoch in range(epochs):
        if limit is not None and steps >= limit:
            break
        begun += 1
        queue: list[int] = []
        for bucket, count in buckets.items():
            images = [bucket] * count
            while images:
                queue.append(len(images[:batch]))
                images = images[batch:]
        if epoch == 0:
            batches, empty = len(queue), sum(batch - filled for filled in queue)
        steps_before = steps
        while queue and (limit is None or steps < limit):
            queue = queue[accumulation:]
            steps += 1
        if epoch == 0 and not queue:
            per_epoch = steps - steps_before
    return {"steps": steps, "batches": batches, "empty": empty, "epochs": begun, "per_epoch": per_epoch}


@given(
    buckets=st.dictionaries(st.integers(0, 20), st.integers(0, 30), min_size=1, max_size=8).filter(
        lambda counts: sum(counts.values()) > 0
    ),
    batch=st.integers(1, 9),
    accumulation=st.integers(1, 6),
    epochs=st.integers(1, 6),
    limit=st.none() | st.integers(1, 200),
)
def test_counts_match_a_simulated_run(
    buckets: dict[int, int], batch: int, accumulation: int, epochs: int, limit: int | None
) -> None:
    walked = simulate(buckets, batch, accumulation, epochs, limit)
    counted = count_steps(
        buckets, batch_size=batch, gradient_accumulation_steps=accumulation, epochs=epochs, max_train_steps=limit
    )
    assert counted.total_steps == walked["steps"]
    assert counted.batches_per_epoch == walked["batches"]
    assert counted.empty_slots == walked["empty"]
    assert counted.epochs == walked["epochs"]
    if walked["per_epoch"]:
        assert counted.steps_per_epoch == walked["per_epoch"]
    assert counted.samples_per_epoch == sum(buckets.values())


def test_small_buckets_need_more_steps_than_images_over_batch_size() -> None:
    # Ten images in five buckets of two at batch 4: five batches, where 10 / 4 would say three.
    counted = count_steps(dict.fromkeys(range(5), 2), batch_size=4, epochs=3)
    assert (counted.steps_per_epoch, counted.total_steps, counted.empty_slots) == (5, 15, 10)


def test_accumulation_ends_with_the_epoch() -> None:
    counted = count_steps({(1024, 1024): 5}, batch_size=1, gradient_accumulation_steps=4, epochs=10)
    assert (counted.steps_per_epoch, counted.total_steps) == (2, 20)


@pytest.mark.parametrize(("limit", "steps", "epochs"), [(7, 7, 2), (5, 5, 1), (6, 6, 2), (1000, 50, 10)])
def test_max_train_steps_can_end_a_run_within_an_epoch(limit: int, steps: int, epochs: int) -> None:
    counted = count_steps({0: 5}, batch_size=1, epochs=10, max_train_steps=limit)
    assert (counted.total_steps, counted.epochs) == (steps, epochs)


@pytest.mark.parametrize("buckets", [{}, {0: 0}])
def test_empty_dataset_is_an_error(buckets: dict[int, int]) -> None:
    with pytest.raises(InputError) as caught:
        count_steps(buckets, batch_size=1, epochs=1)
    assert caught.value.code == "no_images"
