"""The embedded pack is there, small, and does what a real base and tagger do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lora_studio.dataset.captions.text import split_tags
from lora_studio.dataset.tagging.catalogue import find_tagger
from lora_studio.demo import PACK, base_path, tagger_path
from lora_studio.sampling.pipeline import SamplingPipeline, load_sampling_pipeline
from lora_studio.settings.choices import Precision
from lora_studio.workspace.project import Home
from tests.support.tiny_taggers import descriptions

SHEETS = Path(__file__).parents[2] / "data" / "pack"
SIDE = 128  # px, of a picture in a sheet
LIMIT_MIB = 30
COLOURS = {"black", "white", "grey", "red", "orange", "brown", "yellow", "green", "blue", "purple", "pink"}


def sheet(name: str) -> tuple[list[Image.Image], list[dict]]:
    """Pictures that nothing in the pack was trained on, with their words."""
    with Image.open(SHEETS / f"{name}.webp") as image:
        whole = image.convert("RGB")
    boxes = [(x, y) for y in range(0, whole.height, SIDE) for x in range(0, whole.width, SIDE)]
    words = json.loads((SHEETS / f"{name}.json").read_text("utf-8"))
    return [whole.crop((x, y, x + SIDE, y + SIDE)) for x, y in boxes], words


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of bytes."""
    return float(10 * np.log10(255**2 / np.square(one.astype(float) - other.astype(float)).mean()))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> SamplingPipeline:
    """The embedded base, loaded as any base is."""
    return load_sampling_pipeline("embedded", home=Home(tmp_path_factory.mktemp("home")), precision=Precision.FP32)


def test_it_is_small_and_holds_no_pickle() -> None:
    parts = [base_path(), tagger_path()]
    files = [file for part in parts for file in part.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= LIMIT_MIB * 2**20
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".txt", ".csv"}
    assert all(part.parent == PACK for part in parts)


@pytest.mark.parametrize(("name", "least"), [("held-out", 23.5), ("flat", 22.0)])
def test_the_autoencoder_gives_pictures_back(pipeline: SamplingPipeline, name: str, least: float) -> None:
    pictures = [np.asarray(picture) for picture in sheet(name)[0][::4]]
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        y = pipeline.base.vae.decode(pipeline.base.vae.encode(x).latent_dist.mean).sample
    back = ((y.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.mean([psnr(one, other) for one, other in zip(pictures, back, strict=True)]) > least


def test_the_base_draws_what_it_is_asked_for(pipeline: SamplingPipeline) -> None:
    """A red apple is red, a face is yellow, and both stand on white; a word that it does not know changes little."""

    def draw(prompt: str) -> np.ndarray:
        negative = pipeline.encode_negative("", clip_skip=2)
        text = pipeline.encode(prompt, clip_skip=2)
        picture = pipeline.generate(text, negative, seed=5, steps=12, guidance=5, width=SIDE, height=SIDE)
        assert picture is not None
        return np.asarray(picture, dtype=float)

    def middle(picture: np.ndarray) -> np.ndarray:
        return np.median(picture[32:96, 32:96].reshape(-1, 3), 0)

    apple, face, strange = draw("red apple"), draw("grinning face"), draw("qorvix, grinning face")
    red, green, blue = middle(apple)
    assert red > green + 40
    assert red > blue + 40
    for yellow in (face, strange):
        red, green, blue = middle(yellow)
        assert min(red, green) > blue + 40
    for picture in (apple, face):
        assert picture[:6].mean() > 225


def test_the_tagger_names_what_it_sees(home: Home) -> None:
    """On pictures of a set that it never saw, its tags beyond colours are right far more often than by chance."""
    tagger = find_tagger("demo", home=home).load()
    pictures, words = sheet("flat")
    said = [set(split_tags(description.caption)) - COLOURS for description in descriptions(tagger, pictures)]
    true = [{*word["tags"], word["subgroup"]} for word in words]
    right = sum(len(tags & own) for tags, own in zip(said, true, strict=True))
    by_chance = sum(len(tags & own) for tags, own in zip(said, true[7:] + true[:7], strict=True))
    assert right > 0.3 * sum(map(len, said)) > 0
    assert right > 3 * by_chance


def test_the_captioner_says_what_it_sees(home: Home) -> None:
    """On pictures of a set that it never saw: group or name, in words, far more often right than by chance."""
    captioner = find_tagger("demo-captioner", home=home).load()
    pictures, words = sheet("flat")
    said = [" ".join(description.caption.split()) for description in descriptions(captioner, pictures)]

    def right(own: list[dict]) -> int:
        parts = [[part.strip() for part in line.split(",")] for line in said]
        return sum(
            not {word["label"], word["subgroup"]}.isdisjoint(line) for line, word in zip(parts, own, strict=True)
        )

    assert right(words) > 0.35 * len(words)
    assert right(words) > 4 * right(words[7:] + words[:7])
