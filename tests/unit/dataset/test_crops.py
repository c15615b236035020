"""What the trainer sees of each image, and the focus points that crops are centred on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from lora_studio.cli.main import app
from lora_studio.dataset.buckets import Focus, place, place_for
from lora_studio.dataset.crops import crops, set_focus
from lora_studio.dataset.images.crop import crop_to_bucket
from lora_studio.dataset.images.decode import decode
from lora_studio.dataset.marks import load_marks
from lora_studio.errors import InputError
from lora_studio.settings.recipe import Recipe
from lora_studio.training.data.cache import LatentCache
from lora_studio.training.data.dataset import read_dataset
from lora_studio.workspace.project import Home
from tests.support.training_runs import recipe_of

WIDE = (400, 100)
SQUARE = {"enable_bucket": False}  # every image is cropped to the square of the resolution
sides, shares = st.integers(40, 2000), st.floats(0, 1)


def save_spotted(path: Path, spot: tuple[int, int] = (380, 50)) -> Path:
    """Save a wide black image with a white spot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", WIDE)
    image.paste("white", (spot[0] - 10, spot[1] - 10, spot[0] + 10, spot[1] + 10))
    image.save(path)
    return path


def brightness(dataset: Path, recipe: Recipe) -> float:
    """Return the mean brightness of what a run trains on of the only image, 0 to 255."""
    (item,) = read_dataset(dataset, recipe).items
    return float(np.array(crop_to_bucket(decode(item.path).image, item.placement)).mean())


@settings(max_examples=60, deadline=None)
@given(width=sides, height=sides, x=shares, y=shares)
def test_a_focused_crop_is_inside_of_the_image_and_has_the_focus_point(
    width: int, height: int, x: float, y: float
) -> None:
    recipe = Recipe(resolution=512, enable_bucket=False)
    central, focused = place_for(recipe, width, height), place_for(recipe, width, height, Focus(x, y))
    assert (focused.bucket, focused.scaled) == (central.bucket, central.scaled)
    for axis, share in enumerate((x, y)):
        start, side, scaled = focused.crop[axis], focused.bucket[axis], focused.scaled[axis]
        assert 0 <= start <= scaled - side
        assert start <= share * scaled <= start + side


def test_the_middle_of_the_image_is_the_crop_without_a_focus_point() -> None:
    placement = place(1000, 500, resolution=512, enable_bucket=False)
    assert placement.focused(Focus(0.5, 0.5)) == placement


def test_a_run_trains_on_the_crop_with_the_focus_point_and_caches_it_anew(tmp_path: Path) -> None:
    image = save_spotted(tmp_path / "5_ink" / "a.png")
    recipe = recipe_of(**SQUARE)
    cache = LatentCache(tmp_path, "vae")
    before = read_dataset(tmp_path, recipe)
    assert brightness(tmp_path, recipe) == 0
    set_focus(tmp_path, "a.png", (0.95, 0.5))
    assert brightness(tmp_path, recipe) > 5
    after = read_dataset(tmp_path, recipe)
    assert cache.file(before.items[0]) != cache.file(after.items[0])
    assert before.fingerprint != after.fingerprint
    (crop,) = crops(tmp_path, recipe)
    placement = after.items[0].placement
    assert (crop.bucket, crop.scaled, crop.crop) == (placement.bucket, placement.scaled, placement.crop)
    assert crop.focus == (0.95, 0.5)
    set_focus(tmp_path, image, None)
    assert read_dataset(tmp_path, recipe).fingerprint == before.fingerprint
    assert not load_marks(tmp_path).focus


def test_the_focus_point_of_a_project_stays_with_a_renamed_image(home: Home) -> None:
    project = home.create_project("ink")
    image = save_spotted(project.images_dir / "a.png")
    set_focus(project.dataset_dir, image, (0.9, 0.1))
    assert load_marks(project.path).focus
    shutil.move(image, image.with_name("b.png"))
    (crop,) = crops(project.dataset_dir)
    assert (crop.path.name, crop.focus) == ("b.png", (0.9, 0.1))


@pytest.mark.parametrize(
    ("image", "focus", "code"),
    [("a.png", (1.1, 0.5), "focus"), ("a.png", (float("nan"), 0.5), "focus"), ("other.png", (0.5, 0.5), "no_image")],
)
def test_an_unusable_focus_point_is_refused(tmp_path: Path, image: str, focus: tuple[float, float], code: str) -> None:
    save_spotted(tmp_path / "a.png")
    with pytest.raises(InputError) as caught:
        set_focus(tmp_path, image, focus)
    assert caught.value.code == code
    assert not load_marks(tmp_path).focus


def test_the_command_sets_focus_points_and_prints_crops(tmp_path: Path) -> None:
    save_spotted(tmp_path / "5_ink" / "a.png")
    options = ["--set", "enable_bucket=false", "--set", "resolution=64"]
    shown = CliRunner().invoke(app, ["crops", str(tmp_path), "--focus", "5_ink/a.png=1,0.5", *options])
    assert "scaled to 256 × 64, bucket 64 × 64, 75.0% cropped (192 px left)" in shown.stdout
    as_json = CliRunner().invoke(app, ["crops", str(tmp_path), "--focus", "a.png=", *options, "--json"])
    (crop,) = json.loads(as_json.stdout)
    assert (crop["crop"], crop["bucket"], crop["focus"]) == ([96, 0], [64, 64], None)
    wrong = CliRunner().invoke(app, ["crops", str(tmp_path), "--focus", "a.png=middle"])
    assert isinstance(wrong.exception, InputError)
