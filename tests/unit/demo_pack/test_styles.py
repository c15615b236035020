"""LoRAs in held-out styles are trained and judged on the right images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_pack import pictures, styles
from demo_pack.pictures import Picture
from PIL import Image

from lora_studio.workspace.project import Home

SIZE = 32
EVERY = [f"emoji {number}" for number in range(200)]
UNSEEN = next(label for label in EVERY if Picture("", 0, label, "", ()).held_out)
SEEN = EVERY[:3]


@pytest.fixture
def icons(tmp_path: Path) -> styles.Icons:
    """Load discs: yellow in the training sets, black in the high-contrast set, and one label in only one of them."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    inside = np.hypot(y, x) < 12
    for name in (*pictures.TRAINING_SETS, styles.CONTRAST):
        labels = [*SEEN, UNSEEN, *([] if name == styles.CONTRAST else ["only plain"])]
        rgba = np.zeros((len(labels), SIZE, SIZE, 4), np.uint8)
        rgba[:, inside] = (0, 0, 0, 255) if name == styles.CONTRAST else (240, 200, 40, 255)
        np.save(tmp_path / f"{name}.npy", rgba)
        rows = [{"label": label, "subgroup": "face smiling", "tags": ["face"]} for label in labels]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    return styles.Icons.load(tmp_path)


def test_icons_are_those_of_both_sets_that_trained_the_base(icons: styles.Icons) -> None:
    assert set(icons.words) == set(SEEN)


@pytest.mark.parametrize("style", styles.STYLES)
def test_each_style_is_recognised_among_the_others(icons: styles.Icons, style: str) -> None:
    """The judge of one style calls its images styled, and those of no other style."""
    assert len(styles.STYLES) == 6
    looks = {name: styles.colour_histogram(icons.draw(name, [*SEEN, *SEEN])) for name in styles.STYLES}
    plain = styles.colour_histogram(np.stack([pictures.on_white(icons.plain[label][None])[0] for label in [*SEEN] * 2]))
    others = {"on white": plain, **{name: found for name, found in looks.items() if name != style}}
    rates = styles.fit_judge(looks[style], others)[1]
    assert rates == {"in the style": 1.0, **dict.fromkeys(others, 0.0)}


def test_judge_reports_its_errors_on_images_that_it_was_not_fitted_on() -> None:
    """The second half of the others looks like the style: each of them counts as an error."""
    one, other = torch.eye(2)
    rates = styles.fit_judge(one.repeat(8, 1), {"drawn": torch.cat([other.repeat(4, 1), one.repeat(4, 1)])})[1]
    assert rates == {"in the style": 1.0, "drawn": 1.0}


def test_histograms_sum_to_one_and_separate_colours() -> None:
    red, blue = np.zeros((2, 1, SIZE, SIZE, 3), np.uint8)
    red[..., 0] = blue[..., 2] = 255
    found = styles.colour_histogram(np.concatenate([red, blue]))
    assert found.sum(1).tolist() == pytest.approx([1, 1])
    assert (found[0] * found[1]).sum() == 0


def test_dataset_has_a_caption_with_the_trigger_word_for_each_image(icons: styles.Icons, tmp_path: Path) -> None:
    images = icons.draw("neon", SEEN)
    styles.write_dataset(tmp_path, images, [icons.words[label] for label in SEEN])
    for number, label in enumerate(SEEN):
        written = np.asarray(Image.open(tmp_path / "1_style" / f"{number:02}.png"))
        assert np.array_equal(written, images[number])
        caption = (tmp_path / "1_style" / f"{number:02}.txt").read_text()
        assert caption == f"{styles.TRIGGER}, {label}, face"


def test_a_lora_trained_before_is_not_trained_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    trained = tmp_path / "run" / "style.safetensors"
    trained.write_bytes(b"")
    assert styles.train_lora(tmp_path, base=tmp_path / "base", home=Home(tmp_path / "home")) == trained
