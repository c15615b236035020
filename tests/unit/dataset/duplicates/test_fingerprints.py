"""Perceptual hashes, thumbnails and content boxes of images."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lora_studio.dataset.duplicates.candidates import MAX_DISTANCE
from lora_studio.dataset.duplicates.fingerprints import HASH_BITS, THUMBNAIL_SIDE, fingerprint
from tests.support.scenes import photo, resized, saved_as


def distance(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> int:
    """Return the number of bits in which two hashes differ."""
    return int.from_bytes((first ^ second).tobytes()).bit_count()


def test_a_fingerprint_has_two_hashes_per_view_and_a_thumbnail() -> None:
    found = fingerprint(photo(1))
    assert (found.hashes.shape, found.hashes.dtype) == ((3, 2), np.uint64)
    assert found.hashes[0].nbytes * 8 == HASH_BITS
    assert found.thumbnail.shape == (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)
    assert found.thumbnail.dtype == np.uint8


def test_the_mirrored_hashes_are_those_of_the_mirrored_image() -> None:
    for seed in range(3):
        found, mirrored = fingerprint(photo(seed)), fingerprint(ImageOps.mirror(photo(seed)))
        assert distance(found.mirrored_hashes[0], mirrored.hashes[0]) <= 2
        assert distance(found.hashes[0], mirrored.hashes[0]) > MAX_DISTANCE


def test_resizing_and_compression_change_few_bits_and_another_image_changes_many() -> None:
    original = fingerprint(photo(1)).hashes[0]
    for changed in (resized(photo(1), 0.5), saved_as(photo(1), "JPEG", 60)):
        assert distance(original, fingerprint(changed).hashes[0]) <= MAX_DISTANCE
    assert distance(original, fingerprint(photo(2)).hashes[0]) > MAX_DISTANCE


@pytest.mark.parametrize("colour", ["white", "black"])
def test_the_content_box_leaves_out_a_uniform_border(colour: str) -> None:
    image = Image.new("RGB", (400, 400), colour)
    content = Image.new("RGB", (200, 240), "orange" if colour == "black" else "navy")
    image.paste(content, (100, 80))
    assert fingerprint(image).content_box == pytest.approx((0.25, 0.2, 0.75, 0.8), abs=0.02)


def test_a_uniform_image_and_a_speck_have_the_whole_image_as_content() -> None:
    uniform = Image.new("RGB", (300, 200), "teal")
    speck = uniform.copy()
    speck.paste("white", (10, 10, 40, 40))
    assert fingerprint(uniform).content_box == fingerprint(speck).content_box == (0, 0, 1, 1)
