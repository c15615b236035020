"""The validation split depends on content and seed, and keeps duplicates on one side."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.dataset.validation_split import choose_validation_images, validation_count

shares = st.floats(0, 0.5)


def images_of(hashes: list[str]) -> list[tuple[Path, str]]:
    return [(Path(f"{number}.png"), sha256) for number, sha256 in enumerate(hashes)]


@given(number=st.integers(0, 120), share=shares, seed=st.integers(0, 5))
def test_takes_the_given_share_of_distinct_images(number: int, share: float, seed: int) -> None:
    images = images_of([f"{index:064x}" for index in range(number)])
    chosen = choose_validation_images(images, [], share=share, seed=seed)
    assert len(chosen) == validation_count(number, share)
    if number > 1 and share:
        assert 1 <= len(chosen) < number
        assert abs(len(chosen) - share * number) <= max(0.5, 1 - share * number) + 1e-9
    else:
        assert not chosen


@given(
    hashes=st.lists(st.sampled_from("abcdef"), min_size=2, max_size=20),
    duplicates=st.lists(st.lists(st.integers(0, 25), max_size=4), max_size=4),
    share=shares.filter(bool),
)
def test_keeps_duplicates_on_one_side(hashes: list[str], duplicates: list[list[int]], share: float) -> None:
    images = images_of(hashes)
    groups = [[Path(f"{number}.png") for number in group] for group in duplicates]
    chosen = choose_validation_images(images, groups, share=share, seed=3)
    assert len(chosen) < len(images)
    same = [{path for path, sha256 in images if sha256 == each} for each in set(hashes)]
    known = {path for path, _ in images}
    for group in [*same, *(known & set(group) for group in groups)]:
        assert group <= chosen or not group & chosen


def test_depends_on_the_seed_and_not_on_names_or_order() -> None:
    hashes = [f"{index:064x}" for index in range(40)]
    by_path = dict(images_of(hashes))
    chosen = {by_path[path] for path in choose_validation_images(images_of(hashes), [], share=0.1, seed=1)}
    renamed = [(Path(f"x{number}.png"), sha256) for number, sha256 in enumerate(reversed(hashes))]
    again = {dict(renamed)[path] for path in choose_validation_images(renamed, [], share=0.1, seed=1)}
    assert chosen == again
    assert chosen != {by_path[path] for path in choose_validation_images(images_of(hashes), [], share=0.1, seed=2)}


def test_takes_nothing_if_all_images_are_duplicates() -> None:
    assert choose_validation_images(images_of(["a", "a", "a"]), [], share=0.3, seed=0) == frozenset()


@pytest.mark.parametrize(("images", "share", "expected"), [(300, 0.1, 30), (10, 0.1, 1), (4, 0.5, 2), (2, 0.01, 1)])
def test_counts_the_validation_images(images: int, share: float, expected: int) -> None:
    assert validation_count(images, share) == expected
