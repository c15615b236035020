"""Measures of a run's samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_studio.dataset.images.decode import file_sha256
from lora_studio.dataset.tagging.cache import TagCache
from lora_studio.dataset.tagging.catalogue import find_tagger
from lora_studio.dataset.tagging.runner import TaggerRunner, image_sha256
from lora_studio.errors import StopRequested
from lora_studio.measures.features import ImageFile
from lora_studio.measures.samples import DrawnSample, SampleMeasurer
from lora_studio.workspace.project import Home
from tests.support.events import ignore
from tests.support.tiny_taggers import save_tiny_wd
from tests.support.tiny_vision import save_tiny_vision


def picture(seed: int, side: int = 48) -> Image.Image:
    """Return a picture of coarse random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def images(tmp_path: Path) -> list[ImageFile]:
    files = []
    for number in range(5):
        path = tmp_path / f"{number}.png"
        picture(number).save(path)
        files.append(ImageFile(path, file_sha256(path)))
    return files


def measurer(home: Home, training: Sequence[ImageFile], model: str = "", **changes: Any) -> SampleMeasurer:
    options = {"validation": [], "trigger_word": "inkstamp", "report": ignore, "should_stop": lambda: False} | changes
    return SampleMeasurer(model, training, home=home, **options)


def samples(*pictures: Image.Image, prompt: str = "inkstamp, red") -> list[DrawnSample]:
    return [DrawnSample(number, prompt, image) for number, image in enumerate(pictures)]


def test_finds_a_copy_by_thumbnails_where_no_tagger_ran(home: Home, images: list[ImageFile]) -> None:
    found = measurer(home, images).measure(samples(picture(9), picture(3, side=96)), step=7, epoch=2)
    assert found is not None
    assert (found.step, found.epoch, found.features, found.images) == (7, 2, "thumbnails", 5)
    assert found.nearest[1] == str(images[3].path)
    assert found.nearest_ratio[1] < 0.05 < 0.5 < found.nearest_ratio[0]
    assert found.adherence is None


def test_samples_that_are_all_the_same_have_no_variety_and_grey_ones_no_saturation(
    home: Home, images: list[ImageFile]
) -> None:
    greys = [Image.new("RGB", (48, 48), "#808080")] * 3
    found = measurer(home, images).measure(samples(*greys), step=1, epoch=None)
    assert found is not None
    assert found.variety == (pytest.approx(0, abs=1e-3), pytest.approx(0, abs=1e-3))
    assert found.saturation[0] == found.contrast[0] == pytest.approx(0, abs=1e-3)
    assert found.training_saturation > 0.2
    assert found.training_variety is not None
    assert found.training_variety > 0.2


def test_a_taggers_features_of_the_images_come_from_its_cache(
    home: Home, images: list[ImageFile], tmp_path: Path
) -> None:
    files = find_tagger(str(save_tiny_wd(tmp_path / "wd")), home=home)
    paths = [image.path for image in images]
    list(TaggerRunner(files, TagCache.of(files, home), ignore).predict(paths, image_sha256))
    for path in paths[:2]:
        path.unlink()
    found = measurer(home, images).measure(samples(picture(1)), step=1, epoch=1)
    assert found is not None
    assert (found.features, found.images) == (files.name, 5)
    assert found.nearest == [str(paths[1])]
    assert found.nearest_ratio[0] < 0.05
    assert found.adherence is not None
    assert 0 < found.adherence[0] < 1


def test_a_named_models_features_of_the_images_are_cached_by_content(
    home: Home, images: list[ImageFile], tmp_path: Path
) -> None:
    model = str(save_tiny_vision(tmp_path / "dino"))
    phases: list[Any] = []
    first = measurer(home, images[:4], model, validation=images[4:], report=phases.append)
    before = first.measure(samples(picture(2)), step=1, epoch=1)
    assert "1 of 1" in phases[-1].message
    for image in images:
        image.path.write_bytes(b"damaged")
    phases.clear()
    after = measurer(home, images[:4], model, report=phases.append).measure(samples(picture(2)), step=1, epoch=1)
    assert before == after
    assert before is not None
    assert (before.features, before.nearest) == (model, [str(images[2].path)])
    assert not [phase for phase in phases if " of " in phase.message]


def test_leaves_out_what_cannot_be_read_and_says_nothing_about_too_few_images(
    home: Home, images: list[ImageFile]
) -> None:
    broken = images[0].path.with_name("broken.png")
    broken.write_bytes(b"damaged")
    with_broken = [*images[:3], ImageFile(broken, file_sha256(broken))]
    found = measurer(home, with_broken).measure(samples(picture(2)), step=1, epoch=1)
    assert found is not None
    assert found.images == 3
    assert measurer(home, with_broken[1:]).measure(samples(picture(2)), step=1, epoch=1) is None
    assert measurer(home, with_broken[3:]).measure(samples(picture(2)), step=1, epoch=1) is None
    assert measurer(home, images).measure([], step=1, epoch=1) is None


def test_a_stop_request_ends_the_reading_of_images(home: Home, images: list[ImageFile]) -> None:
    with pytest.raises(StopRequested):
        measurer(home, images, should_stop=lambda: True).measure(samples(picture(2)), step=1, epoch=1)
