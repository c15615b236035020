"""Candidate pairs of duplicates, by the Hamming distance of their hashes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_studio.dataset.duplicates.candidates import MAX_DISTANCE, MAX_NEIGHBOURS, candidate_pairs
from lora_studio.dataset.duplicates.fingerprints import VIEW_PAIRS, Fingerprint, fingerprint
from lora_studio.errors import StopRequested
from tests.support.scenes import photo


def fingerprints_with(hashes: NDArray[np.uint64], mirrored: NDArray[np.uint64]) -> list[Fingerprint]:
    """Return fingerprints with these hashes [N, 3, 2]."""
    one = fingerprint(photo(1, (96, 96)))
    return [
        Fingerprint(plain, flipped, one.thumbnail, one.content_box)
        for plain, flipped in zip(hashes, mirrored, strict=True)
    ]


def expected_pairs(fingerprints: list[Fingerprint]) -> set[tuple[int, int, int, int]]:
    """Return the candidate pairs by counting bits pair by pair."""
    found = set()
    for (first, one), (second, other) in itertools.combinations(enumerate(fingerprints), 2):
        for flipped, hashes in enumerate((one.hashes, one.mirrored_hashes)):
            bits = [
                int.from_bytes((hashes[view] ^ other.hashes[other_view]).tobytes()) for view, other_view in VIEW_PAIRS
            ]
            if (distance := min(map(int.bit_count, bits))) <= MAX_DISTANCE:
                found.add((first, second, distance, flipped))
    return found


@settings(max_examples=30, deadline=None)
@given(number=st.integers(2, 40), flips=st.integers(0, 40), seed=st.integers(0, 1000), workers=st.integers(1, 3))
def test_finds_the_pairs_that_counting_bits_finds(number: int, flips: int, seed: int, workers: int) -> None:
    source = np.random.default_rng(seed)
    hashes = source.integers(0, 2**63, (max(1, number // 3), 3, 2), dtype=np.uint64)[
        source.integers(0, max(1, number // 3), number)
    ]
    for _ in range(flips):
        hashes ^= np.uint64(1) << source.integers(0, 64, hashes.shape, dtype=np.uint64)
    fingerprints = fingerprints_with(hashes, hashes[source.permutation(number)])
    pairs = candidate_pairs(fingerprints, workers=workers)
    assert len(pairs) == len({tuple(pair) for pair in pairs.tolist()})
    assert {tuple(pair) for pair in pairs.tolist()} == expected_pairs(fingerprints)


def test_finds_the_near_pairs_among_thousands_of_hashes() -> None:
    source = np.random.default_rng(0)
    hashes, flipped = source.integers(0, 2**63, (2, 9_000, 3, 2), dtype=np.uint64)
    hashes[8_900] = hashes[17] ^ np.uint64(1)
    flipped[500] = hashes[8_500]
    hashes[299] = hashes[300] ^ np.uint64(3)
    fingerprints = fingerprints_with(hashes, flipped)
    single, threaded = (candidate_pairs(fingerprints, workers=workers) for workers in (1, 3))
    assert single.tolist() == threaded.tolist() == [[17, 8_900, 2, 0], [299, 300, 4, 0], [500, 8_500, 0, 1]]


def test_proposes_only_the_nearest_neighbours() -> None:
    number = MAX_NEIGHBOURS + 4
    hashes = np.zeros((number, 3, 2), np.uint64)
    hashes[:, :, 0] = ((np.uint64(1) << np.arange(number, dtype=np.uint64)) - np.uint64(1))[:, None]
    pairs = candidate_pairs(fingerprints_with(hashes, ~hashes))
    assert [pair for pair in pairs.tolist() if pair[0] == 0] == [
        [0, far, far, 0] for far in range(1, MAX_NEIGHBOURS + 1)
    ]


def test_an_exception_of_the_progress_callback_ends_the_comparison() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**63, (20_000, 3, 2), dtype=np.uint64)
    reported: list[int] = []

    def stop(done: int, total: int) -> None:
        reported.append(done)
        raise StopRequested

    with pytest.raises(StopRequested):
        candidate_pairs(fingerprints_with(hashes, hashes), on_progress=stop, workers=2)
    assert reported == [256]
