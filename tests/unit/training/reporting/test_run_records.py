"""The records of a run's images and captions, and a dataset that changed since."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_studio.lora.header import read_lora_header
from lora_studio.settings.subsets import Subset
from lora_studio.training.data import cache, collate
from lora_studio.training.data.caption_variants import training_caption
from lora_studio.workspace.project import Home
from tests.support.augmented_runs import EVERYTHING, augmented_job, read_records, write_dataset
from tests.support.events import of
from tests.support.training_runs import make_job, train_into


@pytest.mark.slow
def test_captions_jsonl_has_the_captions_that_were_used(
    training_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []

    def recorded(*given: Any, **named: Any) -> str:
        used.append(training_caption(*given, **named))
        return used[-1]

    monkeypatch.setattr(collate, "training_caption", recorded)
    _, events = train_into(
        augmented_job(training_inputs, **EVERYTHING | {"max_train_steps": 3}), tmp_path, Home(training_inputs / "home")
    )
    recorded_samples = read_records(tmp_path / "captions.jsonl")
    assert 4 <= len(used) <= len(recorded_samples)
    assert [record["caption"] for record in recorded_samples][: len(used)] == used
    assert of(events, "captions")[0]["examples"] == used[:3]
    assert {record["weight"] for record in recorded_samples} == {0.5, 1.0}
    assert any(caption not in ("", "red, inkstamp, thing 0, small, on a table") for caption in used)
    assert all(caption.startswith("inkstamp") for caption in used if "on a table" in caption)


CAPTION_OPTIONS = {
    "enable_wildcard": True,
    "keep_tokens_separator": "|||",
    "shuffle_caption": True,
    "caption_prefix": "by ohwx,",
    "caption_suffix": ", best",
    "token_warmup_step": 2,
    "caption_variants": 2,
    "max_train_steps": 3,
}


@pytest.mark.parametrize("text_encoder_lr", [0.0, 1e-4])
def test_caption_options_reach_the_text_encoders(
    training_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_encoder_lr: float
) -> None:
    """With frozen text encoders, embeddings are cached before the first step: all that a step uses must be there."""
    encoded: list[str] = []
    module = collate if text_encoder_lr else cache
    encode = module.tokenize if text_encoder_lr else module.encode_text

    def recorded(*given: Any) -> Any:
        texts = next(item for item in given if isinstance(item, list) and isinstance(item[0], str))
        encoded.extend(texts)
        return encode(*given)

    monkeypatch.setattr(module, "tokenize" if text_encoder_lr else "encode_text", recorded)
    images = write_dataset(tmp_path / "images")
    for number in range(4):
        text = f"inkstamp ||| {number}, {{red|blue}}, {{x|y}} ||| end\ninkstamp, a line {number}"
        (images / f"{number}.txt").write_text(text, "utf-8")
    job = make_job(
        training_inputs / "base", images, text_encoder_lr=text_encoder_lr, sample_prompts=[], **CAPTION_OPTIONS
    )
    train_into(job, tmp_path / "run", Home(tmp_path / "home"))
    used = [record["caption"] for record in read_records(tmp_path / "run" / "captions.jsonl")]
    assert set(used) <= set(encoded)
    assert all(caption.startswith(("by ohwx, inkstamp, ", "inkstamp, ")) for caption in encoded)
    assert all(caption.endswith("end, best") for caption in encoded if caption.startswith("by ohwx, "))
    assert not any(mark in caption for caption in encoded for mark in "{|}")
    assert len({caption.count(",") for caption in encoded}) > 1  # fewer tags in the first steps


def test_subsets_reach_the_steps_and_the_metadata(training_inputs: Path, tmp_path: Path) -> None:
    """Each image is used as often, and with the captions, that its subset says."""
    for name in ("a", "b"):
        write_dataset(tmp_path / name)
    job = make_job(training_inputs / "base", tmp_path, sample_prompts=[], epochs=1, shuffle_caption=True)
    job.subsets = [
        Subset(
            image_dir=tmp_path / "a", num_repeats=3, settings={"shuffle_caption": False, "caption_suffix": ", best"}
        ),
        Subset(image_dir=tmp_path / "b", settings={"caption_dropout_rate": 1.0}),
    ]
    result, _ = train_into(job, tmp_path / "run", Home(training_inputs / "home"))
    records = read_records(tmp_path / "run" / "captions.jsonl")
    captions = Counter(record["caption"] for record in records)
    whole = {f"red, inkstamp, thing {number}, small, on a table, best": 3 for number in range(4)}
    assert captions == Counter({"": 4, **whole})
    assert result.lora is not None
    (dataset,) = json.loads(read_lora_header(result.lora).metadata["ss_datasets"])
    assert [(item["image_dir"], item["num_repeats"]) for item in dataset["subsets"]] == [("a", 3), ("b", 1)]


@pytest.mark.slow
def test_warns_about_edited_images_and_captions_when_a_run_resumes(training_inputs: Path, tmp_path: Path) -> None:
    home = Home(training_inputs / "home")
    images = write_dataset(tmp_path / "images")
    job = augmented_job(training_inputs, images, max_train_steps=2)
    train_into(job, tmp_path / "run", home, stop_after=1)
    Image.new("RGB", (64, 64), "red").save(images / "1.png")
    (images / "2.txt").write_text("inkstamp, other", "utf-8")
    _, events = train_into(job, tmp_path / "run", home, resume=True)
    (warning,) = of(events, "warning")
    assert warning["code"] == "dataset_changed"
    assert "1 edited (1.png)" in warning["message"]
    assert "(2.png)" in warning["message"]
