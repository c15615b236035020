"""How good the embedded pack is, on pictures that nothing in it was trained on, and whether a LoRA learns on it.

The sheets have 48 pictures each, so a share is known to some 7 points; the pack's README has the figures of whole sets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora_studio.dataset.captions.text import split_tags
from lora_studio.dataset.tagging.catalogue import find_tagger
from lora_studio.dataset.tagging.interface import Tagger
from lora_studio.dataset.tagging.selection import TagSelection
from lora_studio.example import TRIGGER, run_demo
from lora_studio.lora.header import read_lora_header
from lora_studio.sampling.adapter import apply_lora
from lora_studio.sampling.pipeline import SamplingPipeline, load_sampling_pipeline
from lora_studio.settings.choices import Precision
from lora_studio.workspace.project import Home
from tests.support.tiny_taggers import descriptions

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SHEETS = ROOT / "tests" / "data" / "pack"
SIDE = 128  # px
THRESHOLD = 0.35
NAMES = 12  # of the flat sheet, to draw with the LoRA
Words = list[dict[str, Any]]


def sheet(name: str) -> tuple[list[Image.Image], Words]:
    """Pictures with their words."""
    with Image.open(SHEETS / f"{name}.webp") as image:
        whole = image.convert("RGB")
    boxes = [(x, y) for y in range(0, whole.height, SIDE) for x in range(0, whole.width, SIDE)]
    words = json.loads((SHEETS / f"{name}.json").read_text("utf-8"))
    return [whole.crop((x, y, x + SIDE, y + SIDE)) for x, y in boxes], words


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def pipeline(home: Home) -> SamplingPipeline:
    return load_sampling_pipeline("embedded", home=home, precision=Precision.FP32)


@pytest.fixture(scope="module")
def tagger(home: Home) -> Tagger:
    return find_tagger("demo", home=home).load()


@torch.no_grad()
def given_back(pipeline: SamplingPipeline, pictures: list[Image.Image]) -> np.ndarray:
    """Pictures through the autoencoder, uint8 [N, H, W, 3]."""
    x = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 127.5 - 1
    y = pipeline.base.vae.decode(pipeline.base.vae.encode(x).latent_dist.mean).sample
    return ((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def draw(pipeline: SamplingPipeline, prompts: list[str], seeds: tuple[int, ...]) -> list[Image.Image]:
    """A picture for each prompt and seed."""
    negative = pipeline.encode_negative("", clip_skip=2)
    drawn = []
    for prompt in prompts:
        text = pipeline.encode(prompt, clip_skip=2)
        for seed in seeds:
            picture = pipeline.generate(text, negative, seed=seed, steps=20, guidance=6, width=SIDE, height=SIDE)
            assert picture is not None
            drawn.append(picture)
    return drawn


def known(words: Words) -> Words:
    """Those that the base was trained on, from other sets."""
    from demo_pack.pictures import Picture

    return [word for word in words if not Picture("", 0, word["label"], "", ()).held_out]


def recognised(tagger: Tagger, pictures: list[Image.Image], words: Words) -> float:
    """The share of pictures whose label or group is among the five likeliest tags that are no colours."""
    from demo_pack.colours import NAMES as COLOURS

    right = 0
    said = descriptions(tagger, pictures, TagSelection(threshold=0.0))
    for description, word in zip(said, words, strict=True):
        tags = [tag for tag in split_tags(description.caption) if tag not in COLOURS][:5]
        right += not {word["label"], word["subgroup"]}.isdisjoint(tags)
    return right / len(words)


@pytest.fixture(autouse=True)
def _tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


@pytest.mark.parametrize(("name", "least"), [("held-out", 25.0), ("flat", 22.0)])
def test_pictures_come_back(pipeline: SamplingPipeline, name: str, least: float) -> None:
    pictures = sheet(name)[0]
    error = np.square(np.stack([np.asarray(p) for p in pictures]).astype(float) - given_back(pipeline, pictures))
    assert np.mean(10 * np.log10(255**2 / error.mean((1, 2, 3)))) > least


@pytest.mark.parametrize(("name", "least"), [("flat", 0.5), ("contrast", 0.3)])
def test_the_tagger_sees(tagger: Tagger, name: str, least: float) -> None:
    """Micro-averaged F1 over the tags that it knows."""
    pictures, words = sheet(name)
    vocabulary = {label for label, _ in tagger.labels}
    hits = said_in_all = true_in_all = 0
    descriptions_of = descriptions(tagger, pictures, TagSelection(threshold=THRESHOLD))
    for description, word in zip(descriptions_of, words, strict=True):
        said = set(split_tags(description.caption))
        true = {*word["tags"], word["subgroup"], *word["colours"]} & vocabulary
        hits, said_in_all, true_in_all = hits + len(said & true), said_in_all + len(said), true_in_all + len(true)
    assert 2 * hits / (said_in_all + true_in_all) > least


def test_the_base_draws_what_is_named(pipeline: SamplingPipeline, home: Home) -> None:
    """With an unknown word before the name as well as without."""
    every = find_tagger("demo", home=home).load()
    words = known(sheet("flat")[1])[:30]
    plain = recognised(every, draw(pipeline, [word["label"] for word in words], (11,)), words)
    strange = recognised(every, draw(pipeline, [f"qorvix, {word['label']}" for word in words], (11,)), words)
    assert plain > 0.45
    assert strange > plain - 0.15


def test_a_lora_learns_a_style_that_the_base_has_never_seen(
    pipeline: SamplingPipeline, home: Home, tmp_path: Path
) -> None:
    """The demo's own run; a linear classifier that saw neither its pictures nor the LoRA's judges the style."""
    from demo_pack.learning import fit_classifier, look

    result = run_demo(tmp_path / "demo", home=home, steps=None, on_event=lambda event: None, on_stage=lambda text: None)
    plain = given_back(pipeline, sheet("held-out")[0] + sheet("flat")[0])
    judge = fit_classifier(look(given_back(pipeline, sheet("contrast")[0])), look(plain))
    words = known(sheet("flat")[1])[:NAMES]
    prompts = [f"{TRIGGER}, {word['label']}" for word in words]
    styled, kept = {}, {}
    every = find_tagger("demo", home=home).load()
    with apply_lora(pipeline.pipe, read_lora_header(result.lora)) as adapter:
        for strength in (0.0, 0.7, 1.0):
            adapter.set_strength(strength)
            drawn = draw(pipeline, prompts, (21, 22))
            looks = look(np.stack([np.asarray(picture) for picture in drawn]))
            styled[strength] = float((judge(looks) > 0).float().mean())
            kept[strength] = recognised(every, drawn, [word for word in words for _ in range(2)])
    assert styled[0.0] <= 0.2  # 24 pictures; the goal is 5% of 100
    assert styled[0.0] <= styled[0.7] <= styled[1.0]
    assert styled[1.0] >= 0.7
    assert kept[0.0] > 0.5
    assert kept[1.0] > 0.15  # by chance 0.03; these names lose more than the 25 that the pack's figures are about
