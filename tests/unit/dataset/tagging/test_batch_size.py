"""The batch size that a tagger finds while it runs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lora_studio.dataset.tagging.batch_size import MAX_SECONDS, MAX_SIZE, BatchSize


@given(fixed=st.floats(0, 2), each=st.floats(0.001, 3), most=st.integers(1, 2 * MAX_SIZE), first_batch=st.floats(0, 60))
def test_batches_grow_while_the_time_per_image_falls_and_memory_suffices(
    fixed: float, each: float, most: int, first_batch: float
) -> None:
    """A batch takes `fixed` seconds and `each` per image; more than `most` images do not fit into memory."""
    batch = BatchSize()
    for number in range(40):
        if batch.size > most:
            assert batch.shrink()
            continue
        batch.record(batch.size, fixed + each * batch.size + (first_batch if not number else 0))
    assert batch.is_final
    assert 1 <= batch.size <= min(most, MAX_SIZE)
    assert batch.size == 1 or fixed + each * batch.size / 2 <= MAX_SECONDS or batch.size == 2
    if fixed == 0:
        assert batch.size <= 4  # the time per image does not fall
    if fixed > 20 * each and fixed < 0.1 and most >= MAX_SIZE:
        assert batch.size >= 8
    assert not BatchSize(size=1).shrink()
