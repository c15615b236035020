"""Trigger response and leakage: what the LoRA changes in prompts with the trigger word and in those without it.

All functions take the features [prompts, seeds, F] of pictures as unit vectors, the same prompts and seeds at the same
places, and return the figure with its jackknife standard error over prompts and seeds.
"""

from __future__ import annotations

from lora_studio.measures.distances import MIN_DISTANCE, Vectors, distances, mean
from lora_studio.measures.estimate import Estimate, Indices, jackknife


def trigger_response(
    with_trigger: Vectors, without: Vectors, base_with_trigger: Vectors, base_without: Vectors
) -> Estimate | None:
    """Return how much more the trigger word changes a picture with the LoRA than it does without the LoRA.

    mean d(with, without) / mean d(base with, base without), over prompts and seeds; d is the cosine distance of
    features, at the same seed. 1: the trigger word means no more than it did to the base. The distance of the base's
    pictures counts as MIN_DISTANCE at least. This is the guide's sign of success, "The trigger word works reliably:
    compare the same seed with and without it", as a figure.
    """
    on, off = distances(with_trigger, without), distances(base_with_trigger, base_without)
    return _ratio(on, off)


def leakage(
    with_trigger: Vectors, without: Vectors, base_with_trigger: Vectors, base_without: Vectors
) -> Estimate | None:
    """Return how much the LoRA changes prompts without the trigger word, relative to those with it.

    mean d(without, base without) / mean d(with, base with). 0: prompts without the trigger word stay as they were. 1:
    they change as much as those with it. Drift with the adapter disabled, which peft's method comparison of image
    generation measures, is the same distance without the relation. The distance of prompts with the trigger word counts
    as MIN_DISTANCE at least.
    """
    return _ratio(distances(without, base_without), distances(with_trigger, base_with_trigger))


def change(pictures: Vectors, base: Vectors) -> Estimate | None:
    """Return the mean cosine distance of pictures from those of the base at the same prompt and seed."""
    found = distances(pictures, base)
    return jackknife(lambda prompts, seeds: mean(found[prompts][:, seeds]), found.shape)


def _ratio(numerator: Vectors, denominator: Vectors) -> Estimate | None:
    """Return the ratio of the means of two arrays; their first axes may differ in length where they are unpaired."""

    def paired(prompts: Indices, seeds: Indices) -> float:
        below = mean(denominator[prompts][:, seeds])
        return mean(numerator[prompts][:, seeds]) / max(below, MIN_DISTANCE)

    def unpaired(above: Indices, below: Indices, seeds: Indices) -> float:
        return mean(numerator[above][:, seeds]) / max(mean(denominator[below][:, seeds]), MIN_DISTANCE)

    if numerator.shape == denominator.shape:
        return jackknife(paired, numerator.shape)
    return jackknife(unpaired, (len(numerator), *denominator.shape))
