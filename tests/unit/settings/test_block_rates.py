from __future__ import annotations

import re
from math import pi, sin

import pytest

from lora_studio.settings.block_rates import block_rates, parse_block_rates
from lora_studio.settings.blocks import BLOCKS


@pytest.mark.parametrize(
    ("part", "text", "factors"),
    [
        ("in", "", [1] * 9),
        ("mid", "0.5, 1, 1.5", [0.5, 1, 1.5]),
        ("mid", "mid=0.5", [0.5] * 3),
        ("out", "OUT0-2 = 0.5; out8=1e-1", [0.5] * 3 + [1] * 5 + [0.1]),
        ("in", "zeros+.3", [0.3] * 9),
        ("in", "linear", [number / 8 for number in range(9)]),
        ("out", "reverse_linear + 0.5", [1.5 - number / 8 for number in range(9)]),
        ("out", "sine", [sin(pi / 2 * number / 8) for number in range(9)]),
        ("in", "cosine+.2", [sin(pi / 2 * number / 8) + 0.2 for number in range(8, -1, -1)]),
    ],
)
def test_factors_of_blocks(part: str, text: str, factors: list[float]) -> None:
    assert parse_block_rates(part, text) == pytest.approx(factors)


@pytest.mark.parametrize(
    ("part", "text", "words"),
    [
        ("in", "1,1,1,1,1,1,1,1,1,1,1,1", "12 of the 9 blocks"),  # as for Stable Diffusion 1
        ("mid", "0.5", "1 of the 3 blocks"),
        ("mid", "sine", "1 of the 3 blocks"),
        ("in", "wave+.2", "1 of the 9 blocks"),
        ("in", "sine+x", "'x' is not a number"),
        ("in", "out0=1", "'out0=1' is not in this part"),
        ("in", "in9=1", "in0 to in8"),
        ("in", "in1=-1", "-1 is not between 0 and 100"),
        ("mid", "1,nan,1", "nan is not between"),
        ("mid", "1,x,1", "'x' is not a number"),
    ],
)
def test_what_is_not_a_factor_is_refused(part: str, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_block_rates(part, text)


def test_small_factors_are_zero_in_parts_that_have_factors() -> None:
    found = block_rates("", "0.1,0.2,0.3", "linear", 0.2)
    assert tuple(found) == BLOCKS
    assert [found[f"mid{number}"] for number in range(3)] == [0, 0, 0.3]
    assert [block for block in BLOCKS if block.startswith("out") and not found[block]] == ["out0", "out1"]
    assert {found[f"in{number}"] for number in range(9)} == {1}
