"""The recommended strength and the verdict of a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_studio.lora.header import LoraFile
from lora_studio.sampling.cells import SweepPlan
from lora_studio.sampling.picture_measures import PictureMeasures, StrengthPictures
from lora_studio.sampling.recommend import (
    judge_lora,
    recommend_checkpoint,
    recommend_checkpoints,
    recommend_strength,
    recommendations,
)
from lora_studio.settings.job_specs import SweepJob

OFF: dict[str, Any] = {"closeness": (0.5, 0.02), "contrast": (0.25, 0.01), "seed_variety": (1.0, 0.0)}
ON: dict[str, Any] = OFF | {
    "closeness": (0.9, 0.02),
    "trigger_response": (4.0, 0.3),
    "leakage": (0.1, 0.05),
    "seed_variety": (0.8, 0.05),
    "nearest": "/set/a.png",
    "nearest_ratio": 0.9,
}


def row(strength: float, **changes: Any) -> StrengthPictures:
    return StrengthPictures.model_validate({"strength": strength} | (ON if strength else OFF) | changes)


def curve(*closeness: float, error: float | None = 0.03, **changes: Any) -> list[StrengthPictures]:
    """Return rows at strengths 0, 0.6, 0.8, 1 and 1.2 with the closeness of each but the first."""
    strengths = (0.6, 0.8, 1.0, 1.2)
    return [
        row(0),
        *(row(at, closeness=(value, error), **changes) for at, value in zip(strengths, closeness, strict=True)),
    ]


def test_takes_the_lowest_strength_within_the_error_of_the_best() -> None:
    found = recommend_strength(curve(0.6, 0.88, 0.9, 0.89), "wd14")
    assert (found.strength, found.low, found.high) == (0.8, 0.8, 1.2)
    assert recommend_strength(curve(0.6, 0.7, 0.9, 0.95, error=0.001), "wd14").strength == 1.2


def test_closer_than_the_images_are_to_each_other_is_not_better() -> None:
    assert recommend_strength(curve(0.7, 1.01, 1.2, 1.5), "wd14").strength == 0.8


def test_strengths_that_copy_or_collapse_are_left_out() -> None:
    rows = curve(0.5, 0.7, 0.9, 0.95)
    rows[4] = rows[4].model_copy(update={"nearest_ratio": 0.1})
    rows[3] = rows[3].model_copy(update={"seed_variety": (0.1, 0.02)})
    assert recommend_strength(rows, "wd14").strength == 0.8
    assert recommend_strength([row(0), row(1, nearest_ratio=0.1)], "wd14").strength is None


def test_a_chance_of_one_seed_is_not_a_recommendation() -> None:
    assert recommend_strength(curve(0.6, 0.88, 0.9, 0.89, error=None), "wd14").strength is None
    assert recommend_strength([row(0)], "wd14").strength is None
    assert judge_lora([row(0), row(1, trigger_response=(4.0, None))], "wd14").code == "unclear"


def test_without_training_images_the_trigger_response_decides() -> None:
    rows = [row(at, closeness=None, trigger_response=(value, 0.2)) for at, value in ((0.5, 1.5), (0.8, 3.9), (1, 4.0))]
    assert recommend_strength(rows, "wd14").strength == 0.8


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, "good"),
        ({"trigger_response": (1.1, 0.1)}, "undertrained"),
        ({"seed_variety": (0.1, 0.05)}, "overtrained"),
        ({"content_kept": (0.2, 0.1)}, "overtrained"),
        ({"content_kept": (0.2, 0.1), "reproduction": (0.4, 0.1)}, "overtrained"),
        ({"content_kept": (0.2, 0.1), "reproduction": (1.5, 0.2)}, "wrong_prediction"),
        ({"content_kept": (0.45, 0.1)}, "good"),
        ({"reproduction": (0.4, 0.05)}, "memorised"),
        ({"reproduction": (0.5, 0.15), "content_kept": (0.6, 0.1)}, "good"),
        ({"leakage": (0.95, 0.05)}, "leaks"),
        ({"leakage": (0.95, None)}, "good"),
        ({"nearest_ratio": 0.05}, "memorised"),
        ({"contrast": (0.05, 0.01)}, "wrong_prediction"),
        ({"trigger_response": None}, "unclear"),
        ({"seed_variety": (0.3, 0.1), "leakage": (0.8, 0.1)}, "good"),
        ({"trigger_response": (1.6, 0.5)}, "unclear"),
    ],
)
def test_without_training_images_response_and_leakage_decide(changes: dict[str, Any], code: str) -> None:
    assert judge_lora([row(0), row(0.5), row(1, **changes)], "wd14").code == code


@pytest.mark.parametrize(
    ("likeness", "without", "captions", "code"),
    [
        ((0.8, 0.05), (0.05, 0.02), (0.9, 0.05), "good"),
        ((0.8, 0.05), (0.75, 0.08), None, "leaks"),
        ((0.8, 0.05), (0.5, 0.1), None, "good"),
        ((0.05, 0.02), (0.02, 0.02), (0.06, 0.03), "undertrained"),
        ((0.05, 0.02), None, None, "undertrained"),
        ((0.3, 0.05), (0.05, 0.02), (0.8, 0.1), "trigger_weak"),
        ((0.3, 0.05), (0.05, 0.02), (0.8, 0.4), "undertrained"),
        ((0.4, 0.15), (0.05, 0.02), (0.8, 0.1), "unclear"),
        ((0.55, 0.3), (0.05, 0.02), None, "unclear"),
        ((0.8, None), (0.05, None), None, "unclear"),
        ((0.8, 0.05), (0.9, None), None, "good"),
        ((0.3, 0.05), (0.05, 0.02), (0.9, None), "undertrained"),
    ],
)
def test_likeness_by_kind_of_prompt_decides(likeness: Any, without: Any, captions: Any, code: str) -> None:
    measures = {"likeness": likeness, "likeness_without": without, "caption_likeness": captions}
    given = measures | {"leakage": (0.95, 0.01), "trigger_response": (1, 0.01)}
    assert judge_lora([row(0), row(1, **given)], "wd14").code == code


def test_it_leaks_only_if_it_does_so_at_the_recommended_strength() -> None:
    rows = [
        row(0),
        row(0.7, likeness=(0.78, 0.05), likeness_without=(0.05, 0.05)),
        row(1, likeness=(0.8, 0.05), likeness_without=(0.7, 0.05)),
    ]
    assert judge_lora(rows, "wd14").code == "good"
    assert "At 0.7 the images have gone 78% \N{PLUS-MINUS SIGN} 5%" in judge_lora(rows, "wd14").evidence
    assert judge_lora([rows[0], rows[2]], "wd14").code == "leaks"


def test_likeness_decides_on_the_strength_before_closeness() -> None:
    rows = [row(at, likeness=(value, 0.02)) for at, value in ((0.6, 0.2), (0.8, 0.5), (1.0, 0.9), (1.2, 1.4))]
    assert recommend_strength(rows, "wd14").strength == 1.2
    assert recommend_strength([*rows[:2], row(1, likeness=(1.0, 0.02)), rows[3]], "wd14").strength == 1


def test_copies_at_an_unusual_strength_are_no_verdict() -> None:
    assert judge_lora([row(0), row(1), row(1.4, nearest_ratio=0.05)], "wd14").code == "good"
    assert judge_lora([row(0)], "wd14").code == "unclear"


def epochs(*closeness: float, error: float | None = 0.03) -> dict[str, StrengthPictures]:
    return {f"ink-{number}": row(1, closeness=(value, error)) for number, value in enumerate(closeness, 1)}


def test_takes_the_earliest_checkpoint_within_the_error_of_the_best() -> None:
    found = recommend_checkpoint(epochs(0.6, 0.88, 0.7, 0.9, 0.89), "wd14")
    assert (found.lora, found.equal, found.strength) == ("ink-2", ["ink-2", "ink-4", "ink-5"], 1)
    assert "0.90 \N{PLUS-MINUS SIGN} 0.03 at ink-4" in found.reason
    assert recommend_checkpoint(epochs(0.6, 0.7, 0.9, error=0.001), "wd14").lora == "ink-3"


def test_a_checkpoint_that_copies_or_collapses_is_left_out() -> None:
    rows = epochs(0.6, 0.7, 0.9, 0.95)
    rows["ink-4"] = rows["ink-4"].model_copy(update={"nearest_ratio": 0.1})
    rows["ink-3"] = rows["ink-3"].model_copy(update={"seed_variety": (0.1, 0.02)})
    found = recommend_checkpoint(rows, "wd14")
    assert found.lora == "ink-2"
    assert "ink-3, ink-4" in found.reason


def test_one_picture_each_recommends_no_checkpoint() -> None:
    found = recommend_checkpoint(epochs(0.6, 0.9, error=None), "wd14")
    assert (found.lora, found.equal) == (None, [])
    assert "chance" in found.reason


def plan_of(*files: tuple[str, str], bases: list[str] | None = None) -> SweepPlan:
    """Return the plan of a sweep of files with the steps in their metadata."""
    loras = [LoraFile(Path(path), {"ss_steps": steps} if steps else {}, {}, 0) for path, steps in files]
    job = {"loras": [lora.path for lora in loras], "bases": bases or ["b"], "prompts": ["x"], "strengths": [0, 0.8, 1]}
    return SweepPlan(SweepJob.parse(job), loras)


def measured(strengths: tuple[float, ...] = (0.0, 0.8, 1.0), base: str = "b", **closeness: float) -> PictureMeasures:
    rows = [
        row(strength, base=base, lora=lora, closeness=(value if strength == 1 else 0.5, 0.01))
        for lora, value in closeness.items()
        for strength in strengths
    ]
    return PictureMeasures(features="wd14", rows=rows)


RUN = (("001-ink/ink.safetensors", "300"), ("001-ink/checkpoints/e1.safetensors", "100"))


def test_the_checkpoints_of_a_run_are_compared_in_the_order_of_their_steps() -> None:
    plan = plan_of(*RUN, ("001-ink/checkpoints/e2.safetensors", "200"), ("002-b/b.safetensors", "50"))
    [found] = recommend_checkpoints(measured(ink=0.9, e1=0.6, e2=0.9, b=0.99), plan)
    assert (found.run, found.base, found.lora, found.equal) == ("001-ink", "b", "e2", ["e2", "ink"])
    assert found.strength == 1


def test_other_files_are_no_checkpoints_of_a_run() -> None:
    for files in (RUN[:1], (("a/x.safetensors", ""), ("a/y.safetensors", "")), (("a/x.st", "5"), ("a/y.st", "5"))):
        names = {Path(path).stem: 0.9 for path, _ in files}
        assert recommend_checkpoints(measured(**names), plan_of(*files)) == []


def test_checkpoints_are_compared_at_a_strength_that_all_have() -> None:
    plan = plan_of(*RUN)
    both = [*measured(ink=0.9).rows, *measured((0.0, 0.8), e1=0.9).rows]
    assert recommend_checkpoints(PictureMeasures(features="wd14", rows=both), plan)[0].strength == 0.8
    apart = [*measured((1.0,), ink=0.9).rows, *measured((0.0, 0.8), e1=0.9).rows]
    assert recommend_checkpoints(PictureMeasures(features="wd14", rows=apart), plan) == []


def test_recommendations_are_values_of_json() -> None:
    found = recommendations(measured(ink=0.9, e1=0.6), plan_of(*RUN))
    assert [(item["lora"], item["strength"]) for item in found["strengths"]] == [("ink", 1.0), ("e1", 1.0)]
    assert [item["lora"] for item in found["checkpoints"]] == ["ink"]
    assert json.loads(json.dumps(found)) == found
