"""The example images match their README."""

from __future__ import annotations

import re
from pathlib import Path

from lora_studio.dataset.captions.text import read_caption
from lora_studio.dataset.images.decode import read_image
from lora_studio.dataset.scan import scan
from lora_studio.example import EXAMPLE_IMAGES, PROMPTS


def test_a_scan_finds_exactly_the_planted_flaws() -> None:
    report = scan(EXAMPLE_IMAGES)
    assert report.summary.images == report.summary.readable == 24
    found = {
        (group.keep.name, path.name): reason
        for group in report.duplicate_groups
        for path, reason in zip(group.reject, group.reasons, strict=True)
    }
    assert found == {
        ("guitar.png", "guitar-mirrored.png"): "mirrored duplicate",
        ("owl.png", "owl-resaved.jpg"): "re-encoded duplicate",
        ("rocket.png", "rocket-resized.png"): "resized duplicate",
    }
    issues = {(image.path.name, issue.code) for image in report.images for issue in image.issues}
    assert issues == {("umbrella.png", "too_small")}


def test_readme_lists_exactly_the_images() -> None:
    readme = (EXAMPLE_IMAGES / "README.md").read_text("utf-8")
    good = re.search(r"20 have no flaw:\n(.*?)\.\n", readme, re.DOTALL)
    assert good is not None
    listed = {f"{name}.png" for name in re.split(r",\s+", good[1])}
    flaws = set(re.findall(r"^\| (\S+\.(?:png|jpg)) ", readme, re.MULTILINE))
    assert (len(listed), len(flaws)) == (20, 4)
    captions = {f"{Path(name).stem}.txt" for name in listed | {"umbrella.png"}}
    assert {path.name for path in EXAMPLE_IMAGES.iterdir()} == listed | flaws | captions | {"README.md", "LICENSE"}
    assert all(read_caption(EXAMPLE_IMAGES / name) == Path(name).stem.replace("-", " ") for name in listed)


def test_images_are_grey_with_a_margin() -> None:
    for path in EXAMPLE_IMAGES.glob("*.png"):
        image = read_image(path)
        inked = image.convert("L").point(lambda value: 255 - value).getbbox()
        assert inked is not None
        assert min(inked[:2]) > 0.05 * image.width
        assert max(inked[2:]) < 0.95 * image.width
        colours = image.getcolors(16)
        assert colours is not None
        assert all(red == green == blue for _, (red, green, blue) in colours)


def test_demo_prompts_name_nothing_in_the_training_set() -> None:
    names = {path.stem.replace("-", " ") for path in EXAMPLE_IMAGES.glob("*.png")}
    assert not names & {prompt.removeprefix("{trigger}, ") for prompt in PROMPTS}
