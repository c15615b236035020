"""Variety: how much pictures differ from seed to seed, and from prompt to prompt."""

from __future__ import annotations

from collections.abc import Callable

from lora_studio.measures.distances import MIN_DISTANCE, Vectors, mean, mean_pairwise
from lora_studio.measures.estimate import Estimate, Indices, jackknife

_Variety = Callable[[Vectors], float]


def seed_variety(pictures: Vectors, base: Vectors | None = None) -> Estimate | None:
    """Return the mean distance between pictures of one prompt at different seeds; None with one seed.

    Of features [prompts, seeds, F] as unit vectors. With the `base`'s pictures of the same prompts and seeds, relative
    to theirs: 1 as varied as without the LoRA, 0 always the same picture. The mean pairwise distance is the intra-set
    diversity of Ruiz et al. 2023 (DreamBooth, arXiv:2208.12242, section 4.2), here of any features.
    """
    return _relative(pictures, base, _over_seeds)


def prompt_variety(pictures: Vectors, base: Vectors | None = None) -> Estimate | None:
    """Return the mean distance between pictures of different prompts at one seed; None with one prompt.

    As `seed_variety` otherwise.
    """
    return _relative(pictures, base, _over_prompts)


def _relative(pictures: Vectors, base: Vectors | None, variety: _Variety) -> Estimate | None:
    def statistic(prompts: Indices, seeds: Indices) -> float:
        found = variety(pictures[prompts][:, seeds])
        return found if base is None else found / max(variety(base[prompts][:, seeds]), MIN_DISTANCE)

    return jackknife(statistic, pictures.shape[:2])


def _over_seeds(pictures: Vectors) -> float:
    return mean([mean_pairwise(row) for row in pictures])


def _over_prompts(pictures: Vectors) -> float:
    return mean([mean_pairwise(pictures[:, seed]) for seed in range(pictures.shape[1])])
