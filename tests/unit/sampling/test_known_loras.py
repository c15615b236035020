"""Verdicts and recommended strengths of LoRAs that are known to be good or bad, by tools/demo_pack/collection.py.

The limits were chosen on two of the styles; the third one had no say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_studio.sampling.picture_measures import StrengthPictures
from lora_studio.sampling.recommend import judge_lora, recommend_strength

LORAS = Path(__file__).parents[2] / "data" / "loras"
HAD_NO_SAY = "blueprint"
FEATURES = "demo"


def rows_of(file: Path) -> list[StrengthPictures]:
    return [StrengthPictures.model_validate(row) for row in json.loads(file.read_text("utf-8"))]


def known(style: str = "*") -> list[tuple[dict[str, Any], Path]]:
    files = sorted(LORAS.glob(f"{style}/*/run.json"))
    return [(json.loads(file.read_text("utf-8")), file.parent) for file in files]


def test_the_collection_has_eleven_loras_of_each_style() -> None:
    assert [len(known(style)) for style in ("blueprint", "neon", "sticker")] == [11, 11, 11]


@pytest.mark.parametrize("style", ["*", HAD_NO_SAY])
def test_four_of_five_verdicts_are_right(style: str) -> None:
    found = [
        judge_lora(rows_of(folder / "pictures.json"), FEATURES).code in run["verdicts"] for run, folder in known(style)
    ]
    assert len(found) >= 5
    assert sum(found) / len(found) >= 0.8


def test_the_recommended_strength_is_that_of_a_finer_test_of_other_prompts_and_seeds() -> None:
    well = [folder for _, folder in known() if (folder / "fine.json").exists()]
    assert len(well) >= 2
    for folder in well:
        strengths = [
            recommend_strength(rows_of(folder / name), FEATURES).strength for name in ("pictures.json", "fine.json")
        ]
        assert None not in strengths
        assert abs(strengths[0] - strengths[1]) < 0.1 + 1e-6  # type: ignore[operator]
