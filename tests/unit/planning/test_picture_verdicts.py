"""Verdicts on samples."""

from __future__ import annotations

from typing import Any

from lora_studio.planning.picture_verdicts import judge_samples
from lora_studio.settings.recipe import Recipe
from tests.support.sample_measures import measures

COPY = {"nearest_ratio": [1.0, 0.06, 1.2, 0.3]}
PALE: dict[str, Any] = {"contrast": (0.05, 0.01)}


def test_good_samples_and_samples_before_training_have_no_verdict() -> None:
    assert judge_samples([]) == []
    assert judge_samples([measures(0, **COPY)]) == []
    assert judge_samples([measures(0), measures(100, **COPY), measures(200)]) == []


def test_evidence_has_the_copied_image_and_the_model_that_compared() -> None:
    (verdict,) = judge_samples([measures(0), measures(100, **COPY)])
    assert (verdict.code, verdict.level, verdict.step) == ("copies", "warn", 100)
    for figure in ("2 of 4", "b.png", "6%", "prompt 2", "wd14"):
        assert figure in verdict.evidence


def test_evidence_says_that_only_thumbnails_were_compared() -> None:
    (verdict,) = judge_samples([measures(100, features="thumbnails", **COPY)])
    assert "no tagger" in verdict.evidence


def test_next_step_names_the_checkpoint_before_the_sign_appeared() -> None:
    events = [measures(0), measures(100), measures(200, **PALE), measures(300, **PALE)]
    checkpoints = {100: "checkpoints/ink-000001.safetensors", 200: "b.safetensors", 300: "c.safetensors"}
    (verdict,) = judge_samples(events, checkpoints=checkpoints)
    assert (verdict.code, verdict.level) == ("washed_out", "bad")
    assert "since step 200" in verdict.evidence
    assert "ink-000001.safetensors" in verdict.next_step


def test_washed_out_with_a_set_prediction_type_is_about_that_first() -> None:
    events = [measures(0), measures(100, **PALE)]
    (by_hand,) = judge_samples(events, recipe=Recipe.parse({"prediction_type": "v_prediction"}))
    (automatic,) = judge_samples(events, recipe=Recipe())
    assert "v_prediction to auto" in by_hand.next_step
    assert "prediction_type" not in automatic.next_step
