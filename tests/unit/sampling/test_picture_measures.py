"""Measures of a sweep's images by their features: constructed images with known answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from lora_studio.dataset.images.decode import file_sha256
from lora_studio.lora.header import LoraFile
from lora_studio.measures.thumbnails import SIDE
from lora_studio.sampling.cells import CellKey, SweepPlan
from lora_studio.sampling.picture_measures import PictureMeasures, measure_pictures
from lora_studio.settings.job_specs import SweepJob
from lora_studio.workspace.project import Home
from tests.support.events import ignore
from tests.support.tiny_vision import save_tiny_vision

PROMPTS = ["{trigger}, cat", "{trigger}, house", "cat"]


def noise(*words: object) -> np.ndarray:
    """Return a picture [SIDE, SIDE, 3] that depends on the words alone; pictures of other words do not correlate."""
    return np.random.default_rng([crc32(str(word).encode()) for word in words]).random((SIDE, SIDE, 3))


def save(pixels: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run on four images, of which the last is not trained on."""
    folder = tmp_path / "runs" / "001-ink"
    folder.mkdir(parents=True)
    records = []
    for number in range(7):
        path = save(noise("image", number), tmp_path / "images" / f"{number}.png")
        name = "train" if number < 4 else "held out"
        records.append({"set": name, "path": str(path), "sha256": file_sha256(path), "caption": "", "repeats": 1})
    (folder / "dataset.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    return folder


def measured(
    draw: Callable[[CellKey], np.ndarray], run: Path, home: Home, tmp_path: Path, **changes: object
) -> PictureMeasures:
    """Return the measures of a sweep whose cells are drawn by a function."""
    values = {"loras": [run / "ink.safetensors"], "bases": ["embedded"], "prompts": PROMPTS, "strengths": [0, 0.5, 1]}
    job = SweepJob.parse(values | {"trigger_word": "inkstamp", "seeds": [1, 2, 3]} | changes)
    plan = SweepPlan(job, [LoraFile(path, {}, {}, 0) for path in job.loras])
    folder = tmp_path / "sweep"
    cells = {key: save(draw(key), folder / plan.path(key)) for key in plan.cells}
    return measure_pictures(plan, cells, folder, home, report=ignore, should_stop=lambda: False)


def good(key: CellKey) -> np.ndarray:
    """Return a picture that changes with the strength if the prompt has the trigger word, and else stays."""
    base = noise(key.prompt.replace("inkstamp, ", ""), key.seed)
    if "inkstamp" not in key.prompt or not key.strength:
        return 0.9 * base + 0.1 * noise("trigger", "inkstamp" in key.prompt)
    return (1 - 0.4 * key.strength) * base + 0.4 * key.strength * noise("style", key.prompt)


def test_a_good_lora_responds_to_its_trigger_word_and_does_not_leak(run: Path, home: Home, tmp_path: Path) -> None:
    found = measured(good, run, home, tmp_path)
    assert (found.features, found.images) == ("thumbnails", 4)
    off, half, full = found.rows
    assert [row.strength for row in found.rows] == [0, 0.5, 1]
    assert half.trigger_response is not None
    assert full.trigger_response is not None
    assert 1 < half.trigger_response[0] < full.trigger_response[0]
    assert off.trigger_response is None
    assert off.leakage is None
    assert full.leakage == (pytest.approx(0, abs=1e-3), pytest.approx(0, abs=1e-3))
    for name in ("seed_variety", "prompt_variety"):
        assert getattr(off, name)[0] == pytest.approx(1)
        assert getattr(full, name)[0] > 0.4
    assert full.nearest_ratio is not None
    assert full.nearest_ratio > 0.5
    assert full.adherence is None


def test_a_lora_that_ignores_the_prompt_leaks_and_has_no_variety(run: Path, home: Home, tmp_path: Path) -> None:
    found = measured(lambda key: noise("always") if key.strength else good(key), run, home, tmp_path).rows[-1]
    assert found.leakage is not None
    assert found.leakage[0] == pytest.approx(1, abs=0.1)
    assert found.seed_variety == (pytest.approx(0, abs=1e-3), pytest.approx(0, abs=1e-3))
    assert found.trigger_response is not None
    assert found.trigger_response[0] == pytest.approx(0, abs=1e-3)


def test_likeness_tells_prompts_with_the_trigger_word_from_those_without(run: Path, home: Home, tmp_path: Path) -> None:
    """Training images are noise, which has all colours; the base draws grey, which has one."""

    def draw(key: CellKey) -> np.ndarray:
        grey = np.full((SIDE, SIDE, 3), 0.5)
        return noise(key.prompt, key.seed) if key.strength == 1 and "inkstamp" in key.prompt else grey

    found = measured(draw, run, home, tmp_path).rows
    assert [row.likeness_without for row in found[1:]] == [(0, 0), (0, 0)]
    assert found[0].likeness is None
    assert found[1].likeness == (0, 0)
    assert found[2].likeness is not None
    assert found[2].likeness[0] == pytest.approx(1, abs=0.05)


def test_captions_of_training_images_are_measured_apart(run: Path, home: Home, tmp_path: Path) -> None:
    """A caption's images are noise as the training images are; those of other prompts stay grey."""
    caption = "inkstamp, ink style, tree"
    records = [json.loads(line) for line in (run / "dataset.jsonl").read_text("utf-8").splitlines()]
    text = "\n".join(json.dumps(record | {"caption": caption}) for record in records)
    (run / "dataset.jsonl").write_text(text, "utf-8")

    def draw(key: CellKey) -> np.ndarray:
        if key.strength and key.prompt == caption:
            return noise("image", 2)
        return np.full((SIDE, SIDE, 3), 0.5)

    found = measured(draw, run, home, tmp_path, prompts=[*PROMPTS, caption]).rows[-1]
    assert found.likeness == found.likeness_without == (0, 0)
    assert found.caption_likeness is not None
    assert found.caption_likeness[0] > 0.9
    assert found.nearest_ratio is not None
    assert found.nearest_ratio > 0.5  # what a caption draws does not count as a copy


def test_a_memorised_image_is_named_with_the_cell_that_copies_it(run: Path, home: Home, tmp_path: Path) -> None:
    def copies(key: CellKey) -> np.ndarray:
        copied = key.strength == 1 and key.seed == 2 and key.prompt == "inkstamp, house"
        return noise("image", 2) if copied else good(key)

    found = measured(copies, run, home, tmp_path).rows[-1]
    assert found.nearest == tmp_path / "images" / "2.png"
    assert found.nearest_cell is not None
    assert found.nearest_cell.name.endswith("-1-prompt02-seed2.png")
    assert found.nearest_ratio == pytest.approx(0, abs=0.01)
    assert found.closeness is not None
    assert found.validation_closeness is not None


def test_what_is_missing_is_left_out(run: Path, home: Home, tmp_path: Path) -> None:
    elsewhere = measured(good, tmp_path / "elsewhere", home, tmp_path, seeds=[1], prompts=PROMPTS[1:2])
    assert elsewhere.images == 0
    row = elsewhere.rows[-1]
    unknown = ("trigger_response", "leakage", "closeness", "memorisation", "seed_variety", "prompt_variety", "nearest")
    assert [getattr(row, name) for name in unknown] == [None] * len(unknown)
    assert row.contrast is not None
    without_base = measured(good, run, home, tmp_path, strengths=[1]).rows[0]
    assert [without_base.trigger_response, without_base.leakage, without_base.seed_variety] == [None] * 3
    assert without_base.memorisation is not None


def test_a_named_model_compares(run: Path, home: Home, tmp_path: Path) -> None:
    model = str(save_tiny_vision(tmp_path / "dino"))
    found = measured(good, run, home, tmp_path, feature_model=model, seeds=[1, 2], strengths=[0, 1])
    assert (found.features, len(found.rows)) == (model, 2)
    assert found.rows[1].trigger_response is not None


def test_a_named_tagger_compares_with_training_images_that_it_did_not_tag(
    run: Path, home: Home, tmp_path: Path
) -> None:
    found = measured(good, run, home, tmp_path, feature_model="demo")
    assert found.features == "demo"
    assert found.rows[-1].closeness is not None
    assert found.rows[-1].memorisation is not None
    assert found.rows[-1].validation_closeness is not None
