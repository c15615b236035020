"""The cache of predictions on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from lora_studio.dataset.tagging import cache as tag_cache
from lora_studio.dataset.tagging.cache import TagCache, cached_predictions
from lora_studio.dataset.tagging.catalogue import find_tagger
from lora_studio.dataset.tagging.interface import Prediction
from lora_studio.workspace.project import Home
from tests.support.tagging_jobs import RedTagger
from tests.support.tiny_taggers import save_tiny_wd


def name(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def prediction(number: int) -> Prediction:
    tags = np.arange(number % 4, dtype=np.uint16)
    return Prediction(tags, (tags / 10).astype(np.float16), f"número {number}", np.full(3, number, np.float16))


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_wd(tmp_path_factory.mktemp("wd"))


def opened(tagger: Path, home: Home) -> TagCache:
    return TagCache.of(find_tagger(str(tagger), home=home), home)


def same(found: Prediction, expected: Prediction) -> bool:
    arrays = ("outputs", "confidences", "features")
    equal = all(np.array_equal(getattr(found, name), getattr(expected, name)) for name in arrays)
    return equal and found.sentence == expected.sentence


def test_reads_predictions_back_from_any_number_of_files(
    tagger: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tag_cache, "MAX_FILES", 5)
    for start in range(0, 14, 2):
        cache = opened(tagger, home)
        assert len(cache.predictions) == start
        cache.add(name(start), prediction(start))
        cache.add(name(start + 1), prediction(start + 1))
        cache.flush()
    cache = opened(tagger, home)
    assert len(list(cache.folder.glob("*.npz"))) <= 5 + 1
    assert cache.predictions.keys() == {name(number) for number in range(14)}
    assert all(same(cache.predictions[name(number)], prediction(number)) for number in range(14))
    (broken, *_) = sorted(cache.folder.glob("*.npz"))
    broken.write_bytes(broken.read_bytes()[:-200])
    assert len(opened(tagger, home).predictions) < 14


def test_another_model_has_another_cache(tagger: Path, home: Home, tmp_path: Path) -> None:
    cache = opened(tagger, home)
    cache.add(name(1), prediction(1))
    cache.flush()
    copy = save_tiny_wd(tmp_path / "the same under another name")
    assert name(1) in opened(copy, home).predictions
    table = copy / "selected_tags.csv"
    table.write_text(table.read_text().replace("1girl", "1boy"))
    assert opened(copy, home).predictions == {}


def test_reads_the_tagger_that_has_most_of_the_images(tagger: Path, home: Home, tmp_path: Path) -> None:
    assert cached_predictions(home, [name(1)]) is None
    other = save_tiny_wd(tmp_path / "other", family="convnext")
    for folder, numbers in ((other, range(5)), (tagger, range(3, 11))):
        cache = opened(folder, home)
        for number in numbers:
            cache.add(name(number), prediction(number))
        cache.flush()
    best = cached_predictions(home, [name(number) for number in range(3, 9)])
    assert best is not None
    assert best.name == str(tagger)
    assert best.confidences(name(7)) == pytest.approx({"1girl": 0.2}, abs=1e-3)  # the first two are ratings
    assert best.confidences(name(0)) == {}
    assert tag_cache.cached_confidences(home, name(2)) == {}
    assert cached_predictions(home, [name(99)]) is None


def test_an_image_text_model_does_not_hide_the_tags_of_a_tagger(tagger: Path, home: Home) -> None:
    captioner = RedTagger("captioner")
    captioner.labels = ()
    for cache, numbers in ((opened(tagger, home), [1]), (TagCache.of(captioner, home), [1, 2, 3])):
        for number in numbers:
            known = prediction(number) if cache.labels else Prediction(sentence="a cat")
            cache.add(name(number), known)
        cache.flush()
    best = cached_predictions(home, [name(number) for number in (1, 2, 3)])
    assert best is not None
    assert best.name == str(tagger)
