"""The tagger is trained on icons on white and on their renderings."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from demo_pack import augment, progress, renderings, tagger
from demo_pack.evaluate import rendering_kind


@pytest.fixture
def small(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let a few icons of two sets train a tagger with small batches."""
    monkeypatch.setattr(tagger.pictures, "TAGGER_SETS", tagger.pictures.TRAINING_SETS)
    monkeypatch.setattr(tagger, "MIN_COUNT", 2)
    monkeypatch.setattr(tagger, "BATCH", 6)
    monkeypatch.setattr(tagger, "RENDERED", 2)
    return work


def test_training_continues_from_the_exported_tagger(small: Path) -> None:
    words = tagger.usable_words(tagger.pictures.load(small, tagger.pictures.TRAINING_SETS)[0])
    tags = tagger.vocabulary(words)
    torch.manual_seed(1)
    exported = tagger.build(len(tags))
    tagger.write(exported, tags, small / "pack" / "tagger")
    tagger.adopt(small, small / "pack")
    adopted = progress.ema_weights("tagger", small)
    assert adopted is not None
    assert torch.equal(adopted["tagger"]["conv1.weight"], exported.state_dict()["conv1.weight"].half().float())
    tagger.train(small, length=progress.Length.parse("2"), seed=0, device="cpu")
    trained = progress.ema_weights("tagger", small)
    assert trained is not None
    assert not torch.equal(trained["tagger"]["fc.weight"], adopted["tagger"]["fc.weight"])


def test_renderings_of_the_tagger_show_one_icon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderings, "PAIRS", 0.5)
    shown: list[bool] = []
    plain = tagger.random_rendering

    def watched(*args: object) -> renderings.Rendering:
        found = plain(*args)  # type: ignore[arg-type]
        shown.append(found.is_pair)
        return found

    monkeypatch.setattr(tagger, "random_rendering", watched)
    rgba = torch.randint(0, 256, (8, 32, 32, 4), dtype=torch.uint8)
    images = tagger.render(rgba, 16, random.Random(0))
    assert images.shape == (8, 3, 16, 16)
    assert shown.count(False) == 8
    assert shown.count(True) > 0


@pytest.mark.parametrize(
    ("style", "background", "kind"),
    [
        (("navy and yellow duotone", "rotated"), "", "duotone"),
        (("outline",), "red background", "outline"),
        ((), "red background", "on a background"),
        ((), "white background", "on white"),
        ((), "", "on white"),
    ],
)
def test_the_kind_of_a_rendering_is_its_style_or_its_background(
    style: tuple[str, ...], background: str, kind: str
) -> None:
    assert rendering_kind(style, background) == kind


def test_a_blurred_image_stays_in_range() -> None:
    images = augment.blur(torch.rand(8, 3, 24, 24), progress.StepRng.of(0, "blur", 1, 1.0), 1.0)
    assert images.min() >= 0
    assert images.max() <= 1
