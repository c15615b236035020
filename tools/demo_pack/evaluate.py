"""Measure the exported pack and write the figures to evaluation.json."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from numpy.typing import NDArray
from torch import Tensor

from demo_pack import captioner, captions, colours, pictures, progress, tagger, unet, vae
from demo_pack.pictures import Picture
from demo_pack.renderings import DARK, HELD_OUT_STYLES, PALETTE, Icon, random_rendering

Figures = dict[str, float]

SEEDS = (11, 12, 13, 14)
BORDER = 5  # px: less than the margin around an icon
BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "black": DARK["black"], **PALETTE}
STYLE_WORDS = ("greyscale", "sepia", "outline", "purple silhouette", "navy and yellow duotone", "hatched", "pixelated")


def reconstruction(work: Path, pipeline: StableDiffusionXLPipeline) -> dict[str, float]:
    """Return the mean PSNR in dB of encoded and decoded images that no model was trained on."""
    words, rgba = pictures.load(work, pictures.TRAINING_SETS)
    held = np.array([word.held_out for word in words])
    groups = {"noto and twemoji, held out": rgba[held]}
    for name in pictures.HELD_OUT_SETS:
        groups[name] = pictures.load(work, [name])[1][::8]
    figures = {}
    for name, group in groups.items():
        x = vae.to_signal(pictures.on_white(group))
        figures[name] = round(vae.psnr(x, vae.reconstruct(pipeline.vae, x, "cpu")).mean().item(), 2)
    return figures


def drawing(work: Path, pipeline: StableDiffusionXLPipeline, judge: tagger.Tagger, count: int = 100) -> Figures:
    """Return the share of samples in which the tagger recognises the prompt's emoji, also with an unknown word first.

    Colours are excluded from the tags that count, as nearly every image has two or three; `all tags` includes them.
    `variety` is the mean absolute difference (0 to 255) between images of the same prompt and different seeds.
    """
    rng = random.Random("drawing")
    words = _known_words(work, rng, count)
    repeated = [word for word in words for _ in SEEDS]
    seeds = list(SEEDS) * count
    figures: dict[str, float] = {}
    shuffled = repeated[:]
    rng.shuffle(shuffled)
    for kind in ("plain", "unknown word first"):
        unknown = [captions.made_up_word(rng) for _ in words for _ in SEEDS]
        prompts = [
            word.label if kind == "plain" else f"{u}, {word.label}" for word, u in zip(repeated, unknown, strict=True)
        ]
        drawn = unet.sample_images(pipeline, prompts, seeds)
        found = judge.probabilities(drawn)
        figures[kind] = float(judge.recognised(found, repeated).mean())
        figures[f"{kind}, all tags"] = float(judge.recognised(found, repeated, colours_count=True).mean())
        if kind == "plain":
            figures["chance"] = float(judge.recognised(found, shuffled).mean())
            grouped = drawn.reshape(count, len(SEEDS), -1).astype(np.float32)
            steps = np.abs(grouped[:, 1:] - grouped[:, :-1]).mean(2)
            figures["variety"], figures["least variety"] = float(steps.mean()), float(steps.min())
    return {name: round(value, 3) for name, value in figures.items()}


def nearest_colour(rgb: NDArray[np.uint8]) -> list[str]:
    """Return the colour of BACKGROUNDS nearest to the mean of each image's border, uint8 [N, H, W, 3]."""
    inner = np.zeros(rgb.shape[1:3], bool)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    means = torch.from_numpy(rgb[:, ~inner].mean(1) / 255).float()
    table = torch.tensor(list(BACKGROUNDS.values()))
    return [list(BACKGROUNDS)[i] for i in torch.cdist(means, table).argmin(1).tolist()]


def renderings(work: Path, pipeline: StableDiffusionXLPipeline, judge: tagger.Tagger, count: int = 100) -> Figures:
    """Return shares of samples that follow prompts with a background or a style.

    Backgrounds are judged by the border's colour, content by the tagger. `white without a word`: border of samples of
    the name alone.
    """
    rng = random.Random("renderings")
    words = _known_words(work, rng, count)
    backgrounds = [rng.choice(sorted(set(BACKGROUNDS) - {"white"})) for _ in words]
    named = [rng.choice(STYLE_WORDS) for _ in words]
    seeds = [SEEDS[0]] * count
    drawn = {
        "name": unet.sample_images(pipeline, [word.label for word in words], seeds),
        "background": unet.sample_images(
            pipeline,
            [f"{word.label}, {colour} background" for word, colour in zip(words, backgrounds, strict=True)],
            seeds,
        ),
        "style": unet.sample_images(
            pipeline, [f"{word.label}, {style}" for word, style in zip(words, named, strict=True)], seeds
        ),
    }
    found = {kind: judge.recognised(judge.probabilities(images), words) for kind, images in drawn.items()}
    right = [one == other for one, other in zip(nearest_colour(drawn["background"]), backgrounds, strict=True)]
    figures = {
        "white without a word": np.mean([name == "white" for name in nearest_colour(drawn["name"])]),
        "background as named": np.mean(right),
        "content": found["name"].mean(),
        "content on a background": found["background"].mean(),
        "content in a style": found["style"].mean(),
    }
    return {name: round(float(value), 3) for name, value in figures.items()}


def _known_words(work: Path, rng: random.Random, count: int) -> list[Picture]:
    """Choose emoji that the base was trained on, each label once."""
    every = [word for word in pictures.load(work, pictures.TRAINING_SETS)[0] if not (word.held_out or word.is_flag)]
    by_label = {word.label: word for word in every}
    return rng.sample([by_label[label] for label in sorted(by_label)], count)


def _tag_truth(words: Sequence[Picture], rgba: NDArray[np.uint8], names: Sequence[str]) -> Tensor:
    table = tagger.truth(words, names)
    shown = unet.colour_words(rgba)
    for row, has in enumerate(shown):
        table[row, : len(colours.NAMES)] = torch.tensor([float(name in has) for name in colours.NAMES])
    return table


def _f1(predicted: Tensor, true: Tensor) -> float:
    return round((2 * (predicted & true).sum() / (predicted.sum() + true.sum()).clamp_min(1)).item(), 3)


def tagging(work: Path, judge: tagger.Tagger) -> dict[str, dict[str, float]]:
    """Return the micro-averaged F1 at the threshold on the test sets, with and without colours."""
    figures = {}
    for name in pictures.HELD_OUT_SETS:
        words, rgba = _without_flags(work, name)
        true = _tag_truth(words, rgba, judge.names) > 0.5
        predicted = judge.probabilities(pictures.on_white(rgba)) > tagger.THRESHOLD
        first = len(colours.NAMES)
        figures[name] = {
            "f1": _f1(predicted, true),
            "f1 without colours": _f1(predicted[:, first:], true[:, first:]),
            "tags a picture": round(predicted.float().sum(1).mean().item(), 1),
        }
    return figures


def rendering_kind(style: Sequence[str], background: str) -> str:
    """Return the kind of a rendering by its first word of style, else by its background: "duotone", "on white"."""
    if style:
        return style[0].split()[-1]
    return "on white" if background in ("", "white background") else "on a background"


def tagging_renderings(work: Path, judge: tagger.Tagger) -> Figures:
    """Return the micro-averaged F1 without colours of a test set's renderings, by kind, and in each held-out style."""
    words, rgba = _without_flags(work, pictures.HELD_OUT_SETS[0])
    rng = random.Random("tagging")
    icons = [Icon.from_rgba(one) for one in rgba]
    found = [random_rendering(icon, rng.choice(icons), rng) for icon in icons]
    kinds: dict[str, list[int]] = {}
    for i, one in enumerate(found):
        if not one.is_pair:
            kinds.setdefault(rendering_kind(one.style, one.background), []).append(i)
    drawn = {kind: ([found[i].image for i in rows], rows) for kind, rows in sorted(kinds.items())}
    some = list(range(0, len(icons), 4))
    drawn |= {style: ([draw(icons[i]) for i in some], some) for style, draw in HELD_OUT_STYLES.items()}
    first, figures = len(colours.NAMES), {}
    for kind, (images, rows) in drawn.items():
        shown = (torch.stack(images) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        predicted = judge.probabilities(shown) > tagger.THRESHOLD
        true = tagger.truth([words[i] for i in rows], judge.names) > 0.5
        figures[kind] = _f1(predicted[:, first:], true[:, first:])
    return figures


def _without_flags(work: Path, name: str) -> tuple[list[Picture], NDArray[np.uint8]]:
    words, rgba = pictures.load(work, [name])
    keep = np.array([not word.is_flag for word in words])
    return [word for word in words if not word.is_flag], rgba[keep]


def captioning(work: Path, folder: Path) -> dict[str, float]:
    """Return the share of images of the test sets whose caption has the right label or subgroup."""
    figures = {}
    for name in pictures.HELD_OUT_SETS:
        words, rgba = pictures.load(work, [name])
        chosen = [i for i, word in enumerate(words) if not word.is_flag][::4]
        lines = [_plain(line) for line in captioner.describe(folder, pictures.on_white(rgba[chosen]))]
        right = [
            _plain(words[i].label) in line.split(" , ") or _plain(words[i].subgroup) in line.split(" , ")
            for i, line in zip(chosen, lines, strict=True)
        ]
        figures[name] = round(float(np.mean(right)), 3)
    return figures


def _plain(text: str) -> str:
    """Separate words and commas by single spaces; a tokenizer's decoding may have moved them."""
    return " ".join(text.replace(",", " , ").split())


def evaluate(work: Path, pack: Path) -> Mapping[str, Any]:
    """Measure everything and write the figures to PACK/evaluation.json."""
    from demo_pack.learning import learning  # imports the studio, which no other stage needs

    pipeline = unet.load_exported(pack)
    judge = tagger.Tagger(pack / "tagger")
    figures: dict[str, Any] = {}
    for name, measure in {
        "reconstruction": lambda: reconstruction(work, pipeline),
        "tagging": lambda: tagging(work, judge),
        "tagging renderings": lambda: tagging_renderings(work, judge),
        "captioning": lambda: captioning(work, pack / "captioner"),
        "drawing": lambda: drawing(work, pipeline, judge),
        "renderings": lambda: renderings(work, pipeline, judge),
        "learning": lambda: learning(work, judge),
    }.items():
        figures[name] = measure()
        progress.log(f"evaluate: {name}: {figures[name]}")
    path = pack / "evaluation.json"
    progress.write_json(figures, path)
    return figures
