"""Similar images and diversity, by features like those of taggers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_studio.dataset.curate import proposals
from lora_studio.dataset.duplicates.find import DuplicateKind
from lora_studio.dataset.duplicates.similarity import Features, compare_features
from lora_studio.dataset.images.decode import ImageInfo
from lora_studio.dataset.scan import scan
from tests.support.scenes import photo, save


def images_with(vectors: np.ndarray) -> tuple[list[ImageInfo], Features]:
    """Return images of falling size with these features."""
    infos = [
        ImageInfo(path=Path(f"{row:03d}.png"), width=2000 - row, height=1000, sha256=f"{row:064x}")
        for row in range(len(vectors))
    ]
    return infos, {info.sha256: vector.astype(np.float16) for info, vector in zip(infos, vectors, strict=True)}


def positive_features(number: int, seed: int = 0) -> np.ndarray:
    """Return features as after a ReLU, of which any two have a cosine near 1."""
    rng = np.random.default_rng(seed)
    return 3 + np.abs(rng.normal(0, 1, (number, 64)))


def test_finds_similar_images_although_all_features_have_a_high_cosine() -> None:
    vectors = positive_features(40)
    vectors[7] = vectors[3] + 0.1 * positive_features(1, 1)[0]
    vectors[30] = vectors[12] * 1.02
    vectors[31] = vectors[12] * 0.98
    infos, features = images_with(vectors)
    groups, diversity = compare_features(infos, features, duplicates=set())
    assert {(group.keep.name, *sorted(path.name for path in group.reject)) for group in groups} == {
        ("003.png", "007.png"),
        ("012.png", "030.png", "031.png"),
    }
    assert {group.kind for group in groups} == {DuplicateKind.SIMILAR}
    assert diversity is not None
    assert len(diversity.pairs) == 10
    likeness = [pair.likeness for pair in diversity.pairs]
    assert likeness == sorted(likeness, reverse=True)
    assert {(pair.first.name, pair.second.name) for pair in diversity.pairs[:4]} == {
        ("003.png", "007.png"),
        ("012.png", "030.png"),
        ("012.png", "031.png"),
        ("030.png", "031.png"),
    }
    assert likeness[3] > 0.75 > likeness[4]
    groups, _ = compare_features(infos, features, duplicates={Path("007.png"), Path("012.png")})
    assert [(group.keep.name, len(group.reject)) for group in groups] == [("030.png", 1)]


@pytest.mark.parametrize(("noise", "low", "high"), [(0.02, 0, 5), (1.0, 40, 60), (30.0, 95, 100)])
def test_diversity_is_low_for_one_motif_and_high_for_many(noise: float, low: int, high: int) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(0, 1, 256) + noise * rng.normal(0, 1, (24, 256))
    _, diversity = compare_features(*images_with(vectors), duplicates=set())
    assert diversity is not None
    assert low <= diversity.figure <= high
    assert diversity.images == 24


@given(number=st.integers(0, 20), seed=st.integers(0, 99), scale=st.sampled_from([0.0, 1e-3, 1.0, 100.0]))
def test_any_features_give_disjoint_groups_and_a_diversity_from_0_to_100(number: int, seed: int, scale: float) -> None:
    vectors = scale * np.random.default_rng(seed).normal(0, 1, (number, 8))
    infos, features = images_with(vectors)
    groups, diversity = compare_features(infos, features, duplicates=set())
    assert (diversity is None) == (number < 2)
    grouped = [path for group in groups for path in (group.keep, *group.reject)]
    assert len(grouped) == len(set(grouped))
    if diversity:
        assert 0 <= diversity.figure <= 100
        assert len(diversity.pairs) == min(10, number * (number - 1) // 2)


def test_a_scan_reports_similar_images_without_proposing_to_set_them_aside(tmp_path: Path) -> None:
    for seed in range(10):
        save(photo(seed, (96, 96)), tmp_path / f"{seed}.png")
    save(Image.eval(photo(0, (96, 96)), lambda value: value), tmp_path / "copy.bmp")
    vectors = positive_features(11, 5)
    vectors[1] = vectors[0] + 0.01
    names = sorted(tmp_path.iterdir())

    def features_of(sha256s: object) -> Features:
        infos = {info.path: info.sha256 for info in scan(tmp_path).images}
        return {infos[path]: vectors[row].astype(np.float16) for row, path in enumerate(names)}

    report = scan(tmp_path, features_of=features_of)
    kinds = [(group.kind, group.keep.name, [path.name for path in group.reject]) for group in report.duplicate_groups]
    assert kinds == [("exact", "0.png", ["copy.bmp"]), ("similar", "0.png", ["1.png"])]
    assert report.summary.duplicates == 1
    assert [item.path.name for item in proposals(report)] == ["copy.bmp"]
    assert report.diversity is not None
    assert report.diversity.images == 10
