"""Mean losses by image: corrected for their timesteps, fading from epoch to epoch, written to a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lora_studio.training.reporting.loss_by_image import IMAGE_LOSSES_FILE, ImageLosses, read_image_losses


def ratios_of(losses: ImageLosses) -> dict[str, float]:
    return {entry.image: entry.ratio for entry in losses.ranked()}


def test_timesteps_with_a_high_loss_do_not_count_against_an_image() -> None:
    """Bin 0 has five times the loss of bin 9. `early` was drawn there more often; `hard` is 20% above the others."""
    losses = ImageLosses()
    level = {0: 0.5, 9: 0.1}
    for image, bins, factor in (("early", [0, 0, 0, 9], 1.0), ("late", [0, 9, 9, 9], 1.0), ("hard", [0, 0, 9, 9], 1.2)):
        losses.add([image] * 4, bins, [factor * level[index] for index in bins])
    ranked = losses.ranked()
    assert ranked[0].image == "hard"
    assert ranked[0].loss < max(entry.loss for entry in ranked)  # uncorrected, `early` has the highest loss
    ratios = ratios_of(losses)
    assert ratios["early"] == pytest.approx(ratios["late"], rel=0.03)
    assert ratios["hard"] / ratios["early"] == pytest.approx(1.2, rel=0.03)


def test_regularisation_images_are_left_out() -> None:
    losses = ImageLosses()
    losses.add(["a", None, "b"], [3, 3, 3], [1.0, 9.0, 1.0])
    assert ratios_of(losses) == {"a": 1.0, "b": 1.0}


def test_means_are_over_about_the_last_ten_samples() -> None:
    """Also after thousands of samples, which rescale the weights."""
    losses = ImageLosses()
    for loss in (*[8.0] * 5000, *[1.0] * 10):
        losses.add(["a", "b"], [5, 5], [loss, 1.0], [2.0, 2.0])
    ranked = {entry.image: entry for entry in losses.ranked()}
    assert ranked["a"].samples == pytest.approx(10, rel=0.1)
    assert ranked["a"].loss == pytest.approx(1 + 7 * np.exp(-1), rel=0.02)  # a share of exp(-1) is older
    assert ranked["a"].relative_loss == pytest.approx(ranked["a"].loss / 2)
    assert ranked["b"].loss == pytest.approx(1)


def test_the_file_has_all_images_and_the_event_the_worst_with_enough_samples(tmp_path: Path) -> None:
    losses = ImageLosses()
    for _ in range(5):
        losses.add([f"{number}.png" for number in range(8)], [2] * 8, [1 + number / 10 for number in range(8)])
    losses.add(["new.png"], [2], [9.0])
    again = ImageLosses.model_validate(json.loads(json.dumps(losses.model_dump())))
    event = again.write(tmp_path, epoch=3)
    written = json.loads((tmp_path / IMAGE_LOSSES_FILE).read_text("utf-8"))
    assert written["epoch"] == 3
    assert [entry["image"] for entry in written["images"]] == ["new.png", *(f"{n}.png" for n in range(7, -1, -1))]
    seventh = {
        "image": "7.png",
        "samples": pytest.approx(3.7, abs=0.1),
        "loss": 1.7,
        "ratio": pytest.approx(1.06, abs=0.02),
        "significant": False,
    }
    assert written["images"][1] == seventh
    assert event is not None
    assert (event.epoch, event.file) == (3, IMAGE_LOSSES_FILE)
    assert event.worst == [f"{number}.png" for number in (7, 6)][: len(event.worst)]
    assert event.ratios == sorted(event.ratios, reverse=True)


def test_no_event_and_no_file_without_samples(tmp_path: Path) -> None:
    assert ImageLosses().write(tmp_path, epoch=1) is None
    assert not (tmp_path / IMAGE_LOSSES_FILE).exists()


def drawn(draws: int, images: int, excess: float, seed: int) -> ImageLosses:
    """Return the losses of images with a spread of 35% per draw, of which the first is above the others by `excess`."""
    random, losses = np.random.default_rng(seed), ImageLosses()
    level = 0.7 * np.where(np.arange(images) == 0, 1 + excess, 1.0)
    names = [f"{number:02}.png" for number in range(images)]
    for _ in range(draws):
        expected = random.uniform(0.02, 0.5, images)
        relative = level * random.gamma(8, 1 / 8, images)
        losses.add(names, [5] * images, (expected * relative).tolist(), expected.tolist())
    return losses


def test_losses_are_relative_to_the_base_s_at_the_timesteps_of_the_draws() -> None:
    """An image that was drawn at timesteps with ten times the loss has no higher ratio."""
    losses = ImageLosses()
    losses.add(["early", "early", "late", "late"], [5] * 4, [0.4, 0.6, 0.04, 0.09], [0.5, 1.0, 0.05, 0.1])
    ranked = {entry.image: entry for entry in losses.ranked()}
    assert {name: entry.relative_loss for name, entry in ranked.items()} == pytest.approx({"early": 0.7, "late": 0.85})
    assert ranked["late"].ratio == pytest.approx(0.85 / 0.775)


def test_an_image_is_marked_only_if_it_differs_by_more_than_chance() -> None:
    """Of 50 runs without a hard image at most a few mark one; a loss 70% above the others is nearly always marked."""
    chance = sum(any(entry.significant for entry in drawn(10, 20, 0.0, seed).ranked()) for seed in range(50))
    assert chance <= 6
    hard = [[entry.image for entry in drawn(10, 20, 0.7, seed).ranked() if entry.significant] for seed in range(50)]
    assert sum(found[:1] == ["00.png"] for found in hard) >= 40


def test_few_draws_and_a_single_image_are_never_marked() -> None:
    assert not any(entry.significant for entry in drawn(3, 20, 9.0, 0).ranked())
    assert not any(entry.significant for entry in drawn(10, 1, 0.0, 0).ranked())
    assert not any(entry.significant for entry in drawn(1, 5, 0.0, 0).ranked())


def test_the_file_is_read_back_also_from_earlier_versions(tmp_path: Path) -> None:
    drawn(10, 3, 2.0, 0).write(tmp_path, epoch=1)
    assert read_image_losses(tmp_path)[0].image == "00.png"
    old = {"epoch": 1, "images": [{"image": "a.png", "samples": 5.0, "loss": 0.1, "ratio": 1.2}]}
    (tmp_path / IMAGE_LOSSES_FILE).write_text(json.dumps(old), "utf-8")
    (entry,) = read_image_losses(tmp_path)
    assert (entry.ratio, entry.relative_loss, entry.significant) == (1.2, None, False)
    (tmp_path / IMAGE_LOSSES_FILE).write_text("{", "utf-8")
    assert read_image_losses(tmp_path) == []
