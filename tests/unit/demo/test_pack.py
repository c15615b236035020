"""The embedded pack is complete and small, and its models work like a real base and tagger."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_studio.dataset.captions.text import split_tags
from lora_studio.dataset.tagging.catalogue import find_tagger
from lora_studio.demo import PACK, base_path, tagger_path
from lora_studio.sampling.pipeline import SamplingPipeline, load_sampling_pipeline
from lora_studio.settings.choices import Precision
from lora_studio.workspace.project import Home
from tests.support.pack_sheets import SIDE, Words, load_sheet
from tests.support.tiny_taggers import descriptions
from tests.support.training_runs import same

LIMIT_MIB = 30
COLOURS = {"black", "white", "grey", "red", "orange", "brown", "yellow", "green", "blue", "purple", "pink"}


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB of two 8-bit images."""
    return float(10 * np.log10(255**2 / np.square(one.astype(float) - other.astype(float)).mean()))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> SamplingPipeline:
    """The embedded base, loaded like any base."""
    return load_sampling_pipeline("embedded", home=Home(tmp_path_factory.mktemp("home")), precision=Precision.FP32)


def test_pack_is_small_and_has_no_pickles() -> None:
    parts = [base_path(), tagger_path()]
    files = [file for part in parts for file in part.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= LIMIT_MIB * 2**20
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".txt", ".csv"}
    assert all(part.parent == PACK for part in parts)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_text_encoders_have_the_names_that_transformers_4_and_5_read(part: str) -> None:
    with safe_open(base_path() / part / "model.safetensors", framework="pt") as file:
        names = set(file.keys()) - {"text_projection.weight"}
    assert len(names) == 52
    assert {name.split(".")[0] for name in names} == {"text_model"}


def test_export_adds_the_prefix_once_and_changes_no_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "tools"))
    from demo_pack.export import add_text_model_prefix

    weights = {"embeddings.weight": torch.randn(3, 2).half(), "final_layer_norm.bias": torch.randn(2)}
    save_file(weights, tmp_path / "x.safetensors")
    for _ in range(2):
        add_text_model_prefix(tmp_path / "x.safetensors")
        assert same(load_file(tmp_path / "x.safetensors"), {f"text_model.{name}": weights[name] for name in weights})


@pytest.mark.parametrize(("name", "minimum"), [("held-out", 23.5), ("flat", 22.0)])
def test_autoencoder_reaches_its_psnr(pipeline: SamplingPipeline, name: str, minimum: float) -> None:
    pictures = [np.asarray(picture) for picture in load_sheet(name)[0][::4]]
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        y = pipeline.base.vae.decode(pipeline.base.vae.encode(x).latent_dist.mean).sample
    back = ((y.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.mean([psnr(one, other) for one, other in zip(pictures, back, strict=True)]) > minimum


@pytest.mark.slow
def test_base_draws_the_named_emoji_on_white(pipeline: SamplingPipeline) -> None:
    """A red apple is red, a face is yellow, both on white; an unknown word changes little."""

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


def test_tagger_is_right_more_often_than_by_chance(home: Home) -> None:
    """Tags except colours, on images of a set that it was not trained on."""
    tagger = find_tagger("demo", home=home).load()
    pictures, words = load_sheet("flat")
    predicted = [set(split_tags(description.caption)) - COLOURS for description in descriptions(tagger, pictures)]
    true = [{*word["tags"], word["subgroup"]} for word in words]
    right = sum(len(tags & own) for tags, own in zip(predicted, true, strict=True))
    by_chance = sum(len(tags & own) for tags, own in zip(predicted, true[7:] + true[:7], strict=True))
    assert right > 0.3 * sum(map(len, predicted)) > 0
    assert right > 3 * by_chance


def test_captioner_is_right_more_often_than_by_chance(home: Home) -> None:
    """Subgroup or label, on images of a set that it was not trained on."""
    captioner = find_tagger("demo-captioner", home=home).load()
    pictures, words = load_sheet("flat")
    predicted = [" ".join(description.caption.split()) for description in descriptions(captioner, pictures)]

    def right(own: Words) -> int:
        parts = [[part.strip() for part in line.split(",")] for line in predicted]
        return sum(
            not {word["label"], word["subgroup"]}.isdisjoint(line) for line, word in zip(parts, own, strict=True)
        )

    assert right(words) > 0.35 * len(words)
    assert right(words) > 4 * right(words[7:] + words[:7])
