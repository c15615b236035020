"""Distances between features."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lora_studio.measures.distances import cross_distances, distances, mean_pairwise, pixel_vectors, unit_vectors
from tests.support.features import at_angles, distance

FEATURES = arrays(np.float32, (4, 5), elements=st.floats(-10, 10, width=32))


@given(FEATURES, FEATURES)
def test_distances_are_symmetric_bounded_and_zero_to_oneself(first: np.ndarray, second: np.ndarray) -> None:
    one, other = unit_vectors(first), unit_vectors(second)
    found = distances(one, other)
    assert np.allclose(found, distances(other, one))
    assert ((found >= 0) & (found <= 2 + 1e-5)).all()
    assert np.allclose(np.diag(cross_distances(one, other)), found, atol=1e-5)
    long = np.linalg.norm(first, axis=-1) > 1e-3
    assert np.allclose(distances(one, one)[long], 0, atol=1e-5)


@given(FEATURES, st.floats(0.5, 20))
def test_scale_does_not_matter(features: np.ndarray, factor: float) -> None:
    long = np.linalg.norm(features, axis=-1) > 1e-3
    assert np.allclose(unit_vectors(features * np.float32(factor))[long], unit_vectors(features)[long], atol=1e-3)


@given(arrays(np.float32, (2, 60), elements=st.floats(0, 1, width=32)), st.floats(-0.5, 0.5))
def test_brightness_of_pixels_does_not_matter(pixels: np.ndarray, shift: float) -> None:
    assert np.allclose(pixel_vectors(pixels), pixel_vectors(pixels + np.float32(shift)), atol=1e-3)


def test_flat_pictures_are_equal_and_others_differ_by_their_correlation() -> None:
    random = np.random.default_rng(0)
    flat = 0.5 + 0.002 * random.normal(size=(2, 3000))
    assert distances(*pixel_vectors(flat)) < 0.01
    noise = random.random((2, 3000))
    assert distances(*pixel_vectors(noise)) == pytest.approx(1 - np.corrcoef(noise)[0, 1], abs=0.03)


def test_mean_of_pairs() -> None:
    assert mean_pairwise(at_angles([0, 60, 120])) == pytest.approx((2 * distance(60) + distance(120)) / 3, abs=1e-6)
    assert np.isnan(mean_pairwise(at_angles([0])))
