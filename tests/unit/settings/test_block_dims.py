from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.settings.block_dims import parse_block_dims
from lora_studio.settings.blocks import BLOCKS


@pytest.mark.parametrize(
    ("text", "dims"),
    [
        ("", {}),
        ("in4=8", {"in4": 8}),
        ("IN4 - 5 = 8; mid=16", {"in4": 8, "in5": 8, "mid0": 16, "mid1": 16, "mid2": 16}),
        ("out=4, out8=0", {**{f"out{number}": 4 for number in range(8)}, "out8": 0}),
        (",".join(map(str, range(23))), dict(zip(BLOCKS, range(1, 22), strict=True))),
    ],
)
def test_names_and_kohyas_list_are_parsed(text: str, dims: dict[str, int]) -> None:
    assert parse_block_dims(text) == dims


@given(dims=st.dictionaries(st.sampled_from(BLOCKS), st.integers(0, 512)))
def test_written_dims_are_parsed_back(dims: dict[str, int]) -> None:
    assert parse_block_dims(", ".join(f"{block}={dim}" for block, dim in dims.items())) == dims
