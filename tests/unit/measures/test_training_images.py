"""Closeness and memorisation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.measures.training_images import closeness, likeness, memorisation
from tests.support.features import at_angles, distance

IMAGES = at_angles([0, 20, 40, 60])
PICTURES = st.lists(st.floats(0, 300), min_size=1, max_size=5)


def test_pictures_drawn_like_the_images_are_about_as_close_as_these_are() -> None:
    random = np.random.default_rng(0)
    images, pictures, others = (
        random.normal(size=(60, 8)).astype(np.float32) + middle for middle in (3 * np.eye(8)[0],) * 2 + (-np.eye(8)[1],)
    )
    unit = [vectors / np.linalg.norm(vectors, axis=-1, keepdims=True) for vectors in (images, pictures, others)]
    same, other = (closeness(unit[place][:, None], unit[0]) for place in (1, 2))
    assert same is not None
    assert other is not None
    assert same.value == pytest.approx(1, abs=0.1)
    assert other.value < 0.5


def test_half_of_the_way_is_half_of_the_likeness() -> None:
    images, base = at_angles([0.0, 0.0, 0.0]), at_angles([[90.0]])
    half = np.degrees(np.arccos(0.5))
    found = likeness(at_angles([[half]]), base, images)
    assert found is not None
    assert found == (pytest.approx(0.5, abs=1e-4), None)


def test_a_base_that_draws_such_images_already_has_no_way_to_go() -> None:
    assert likeness(at_angles([[0.0]]), at_angles([[30.0]]), at_angles([0.0, 60.0, 0.0])) is None
    assert likeness(at_angles([[0.0]]), at_angles([[120.0]]), IMAGES[:2]) is None


@given(PICTURES)
def test_a_copy_has_ratio_zero_and_names_its_image(angles: list[float]) -> None:
    found = memorisation(at_angles([[*angles, 40.0]]), IMAGES)
    assert found is not None
    assert found.ratios[0, -1] == pytest.approx(0, abs=1e-3)
    assert found.nearest[0, -1] == 2
    assert found.ratios[found.closest] == found.ratios.min()
    assert (found.ratios >= 0).all()


def test_ratio_is_relative_to_the_distances_among_the_images_without_regard_to_duplicates() -> None:
    found = memorisation(at_angles([[80.0], [70.0]]), at_angles([0, 20, 40, 60, 60]))
    assert found is not None
    assert found.nearest.ravel().tolist() == [3, 3]
    assert found.ratios.ravel() == pytest.approx([1.0, distance(10) / distance(20)], rel=1e-3)
    assert found.mean.value == pytest.approx(found.ratios.mean())


def test_a_missing_picture_has_no_nearest_image() -> None:
    pictures = at_angles([[40.0, 12.0]])
    pictures[0, 0] = np.nan
    found = memorisation(pictures, IMAGES)
    assert found is not None
    assert found.nearest.tolist() == [[-1, 1]]
    assert found.closest == (0, 1)


def test_too_few_images_say_nothing() -> None:
    assert closeness(at_angles([[0.0]]), IMAGES[:2]) is None
    assert memorisation(at_angles([[0.0]]), IMAGES[:2]) is None
    assert memorisation(np.full((1, 1, 2), np.nan, np.float32), IMAGES) is None
