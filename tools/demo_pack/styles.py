"""Style and content of LoRAs trained in the held-out styles, which show whether the base keeps the two apart.

For each style a LoRA is trained with the demo preset on emoji drawn in it, captioned with the trigger word and the
emoji's own words. It then draws other emoji at several strengths. Style is judged by a linear classifier of colour
histograms, content by the tagger. Both judges are also measured on images of known style and content.
"""

import dataclasses
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from demo_pack import pictures, progress, tagger, unet, vae
from demo_pack.learning import CONTRAST, SEEDS, choose_words, fit_classifier, reconstruct, sample, styled_share
from demo_pack.pictures import Picture
from demo_pack.renderings import HELD_OUT_STYLES, Icon
from lora_studio import api
from lora_studio.lora.header import read_lora_header
from lora_studio.planning.presets import load_preset
from lora_studio.sampling.adapter import apply_lora
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.project import Home

HIGH_CONTRAST = "high contrast"  # the style of the example images
STYLES = (*HELD_OUT_STYLES, HIGH_CONTRAST)
COUNTS = (12, 24)  # training images of a LoRA
STRENGTHS = (0.0, 0.7, 1.0)
TRIGGER = "vexon_st"
LEVELS = 4  # of each colour channel in a histogram
JUDGED = 200  # images of each kind that the style judge is fitted on and measured with, half each


@dataclasses.dataclass(frozen=True)
class Icons:
    """Emoji with images in the base's training sets and in the high-contrast set, by label."""

    words: dict[str, Picture]
    plain: dict[str, NDArray[np.uint8]]
    contrast: dict[str, NDArray[np.uint8]]

    @classmethod
    def load(cls, work: Path) -> "Icons":
        """Load the emoji that both sets have, without those that train no model."""
        words, plain = pictures.load(work, pictures.TRAINING_SETS)
        other_words, contrast = pictures.load(work, [CONTRAST])
        row = {word.label: i for i, word in enumerate(other_words)}
        first = {word.label: i for i, word in reversed([*enumerate(words)])}
        known = [label for label, i in first.items() if label in row and not (words[i].held_out or words[i].is_flag)]
        return cls(
            {label: words[first[label]] for label in known},
            {label: plain[first[label]] for label in known},
            {label: contrast[row[label]] for label in known},
        )

    def draw(self, style: str, labels: Sequence[str]) -> NDArray[np.uint8]:
        """Draw emoji in a held-out style, uint8 [N, H, W, 3]."""
        if style == HIGH_CONTRAST:
            return pictures.on_white(np.stack([self.contrast[label] for label in labels]))
        drawn = torch.stack([HELD_OUT_STYLES[style](Icon.from_rgba(self.plain[label])) for label in labels])
        return (drawn * 255).round().byte().permute(0, 2, 3, 1).numpy()


def colour_histogram(rgb: NDArray[np.uint8]) -> Tensor:
    """Return joint histograms of red, green and blue at 64 x 64: uint8 [N, H, W, 3] -> float [N, LEVELS ** 3]."""
    x = functional.adaptive_avg_pool2d(torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255, 64)
    red, green, blue = (x * LEVELS).long().clamp(max=LEVELS - 1).flatten(2).unbind(1)
    joint = (red * LEVELS + green) * LEVELS + blue
    return torch.zeros(len(x), LEVELS**3).scatter_add_(1, joint, torch.full(joint.shape, 1 / joint.shape[1]))


def fit_judge(styled: Tensor, others: dict[str, Tensor]) -> tuple[nn.Linear, dict[str, float]]:
    """Fit the style judge on the first half of each kind of histograms [N, bins].

    Return it with the share of the second half of each kind that it calls styled: its errors, and its hits.
    """
    kinds = {"in the style": styled, **others}
    half = {kind: len(found) // 2 for kind, found in kinds.items()}
    judge = fit_classifier(styled[: half["in the style"]], torch.cat([kinds[kind][: half[kind]] for kind in others]))
    return judge, {kind: styled_share(judge, found[half[kind] :]) for kind, found in kinds.items()}


def full_caption(number: int, word: Picture) -> str:
    """Return trigger word, label and tags."""
    return ", ".join((TRIGGER, word.label, *word.tags))


def write_dataset(
    folder: Path,
    images: NDArray[np.uint8],
    words: Sequence[Picture],
    caption: Callable[[int, Picture], str] = full_caption,
) -> None:
    """Write images uint8 [N, H, W, 3] with captions, each made of the image's number and emoji, to FOLDER/1_style."""
    target = folder / "1_style"
    target.mkdir(parents=True, exist_ok=True)
    for number, (image, word) in enumerate(zip(images, words, strict=True)):
        Image.fromarray(image).save(target / f"{number:02}.png")
        (target / f"{number:02}.txt").write_text(caption(number, word), encoding="utf-8")


def train_lora(folder: Path, *, base: Path, home: Home, changes: Mapping[str, Any] | None = None) -> Path:
    """Train a LoRA on FOLDER/dataset, unless that was finished before; return its file.

    The recipe is the demo preset with some values changed.
    """
    if found := sorted((folder / "run").glob("style.safetensors")):
        return found[0]
    shutil.rmtree(folder / "run", ignore_errors=True)
    recipe = Recipe.parse({**load_preset("demo"), "sample_every_n_epochs": 0, **(changes or {})})
    done = api.train(
        folder / "dataset",
        base=str(base),
        name="style",
        trigger_word=TRIGGER,
        recipe=recipe,
        out=folder / "run",
        home=home,
    )
    assert done.lora is not None
    return done.lora


@dataclasses.dataclass(frozen=True)
class StyleJudge:
    """A classifier of one style, with the figures by which it was measured."""

    classifier: nn.Linear
    figures: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Judges:
    """What every LoRA of a base is judged with: the base itself, its own samples, and judges of style and content.

    `words` are prompted, `learned` are the labels of the training images; `at_zero` are the base's samples of the
    prompts with the trigger word, uint8 [words * seeds, 128, 128, 3], and `right` those with the right content.
    """

    pipeline: StableDiffusionXLPipeline
    content: tagger.Tagger
    icons: Icons
    words: list[Picture]
    learned: list[str]
    at_zero: NDArray[np.uint8]
    right: NDArray[np.bool_]
    styles: dict[str, StyleJudge]

    @classmethod
    def load(cls, work: Path, pack: Path, chosen: Sequence[str] = STYLES) -> "Judges":
        """Load the base and the tagger of PACK and fit the judges of the chosen styles."""
        icons = Icons.load(work)
        words, others = choose_words(work)
        prompted = {word.label for word in words}
        learnable = sorted(set(icons.words) - prompted - {word.label for word in others})
        learned = random.Random("styles").sample(learnable, max(COUNTS))
        known = random.Random("known").sample(sorted(set(learnable) - set(learned)), JUDGED)
        pipeline = unet.load_exported(pack)
        content = tagger.Tagger(pack / "tagger")
        kinds = _other_kinds(work, pipeline, others, prompted | set(learned))
        styles = {}
        for style in chosen:
            images = reconstruct(pipeline, icons.draw(style, known))
            classifier, rates = fit_judge(colour_histogram(images), kinds)
            recognised = _recognised(content, images, [icons.words[label] for label in known])
            figures = {"called styled": rates, "content recognised in the style": round(float(recognised.mean()), 3)}
            styles[style] = StyleJudge(classifier, figures)
        at_zero = sample(pipeline, _prompts(words, trigger=True))
        right = _recognised(content, at_zero, _per_seed(words))
        return cls(pipeline, content, icons, words, learned, at_zero, right, styles)

    def judge(self, lora: Path, style: str) -> tuple[dict[str, dict[str, float]], NDArray[np.uint8]]:
        """Return figures by strength and a sheet of samples, one row per strength, the last without the trigger word.

        `style`: share of the samples in the style. `content kept`: share with the right content among those that the
        base itself draws with the right content.
        """
        figures: dict[str, dict[str, float]] = {"style": {}, "content kept": {}}
        rows = []
        with apply_lora(self.pipeline, read_lora_header(lora)) as adapter:
            for strength, trigger in [*((strength, True) for strength in STRENGTHS), (1.0, False)]:
                adapter.set_strength(strength)
                drawn = sample(self.pipeline, _prompts(self.words, trigger=trigger)) if strength else self.at_zero
                found = _recognised(self.content, drawn, _per_seed(self.words))
                key = f"{strength:g}" if trigger else "1, no trigger word"
                figures["style"][key] = styled_share(self.styles[style].classifier, colour_histogram(drawn))
                figures["content kept"][key] = round(float((found & self.right).sum() / max(1, self.right.sum())), 3)
                rows.append(np.concatenate(list(drawn[:: len(SEEDS)][:12]), 1))
        return figures, np.concatenate(rows)


def _prompts(words: Sequence[Picture], *, trigger: bool) -> list[str]:
    return [f"{TRIGGER}, {word.label}" if trigger else word.label for word in words]


def _per_seed(words: Sequence[Picture]) -> list[Picture]:
    return [word for word in words for _ in SEEDS]


def _recognised(judge: tagger.Tagger, drawn: NDArray[np.uint8], words: Sequence[Picture]) -> NDArray[np.bool_]:
    return judge.recognised(judge.probabilities(drawn), words)


def _other_kinds(
    work: Path, pipeline: StableDiffusionXLPipeline, others: Sequence[Picture], used: set[str]
) -> dict[str, Tensor]:
    """Return histograms of images that are in no held-out style: on white, rendered, and drawn by the base."""
    words, rgba = pictures.load(work, pictures.TRAINING_SETS)
    usable = [i for i, word in enumerate(words) if word.label not in used and not word.is_flag]
    chosen = rgba[random.Random("kinds").sample(usable, min(JUDGED, len(usable)))]
    rendered = ((vae.render(chosen, random.Random("judge")) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return {
        "on white": colour_histogram(reconstruct(pipeline, pictures.on_white(chosen))),
        "rendered": colour_histogram(reconstruct(pipeline, rendered)),
        "drawn": colour_histogram(sample(pipeline, [word.label for word in others])),
    }


def judge_styles(
    judges: Judges,
    *,
    base: Path,
    home: Home,
    folder: Path,
    counts: Sequence[int] = COUNTS,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Train and judge a LoRA on `base` for each style of `judges` and number of images; return the figures by style.

    FOLDER gets the LoRAs, sheets of samples and figures.json; what an earlier call left there is not done again. It
    belongs to one base and recipe. `changes` are to the demo preset.
    """
    path = folder / "figures.json"
    figures: dict[str, dict[str, Any]] = progress.read_json(path) if path.exists() else {}
    for style, judge in judges.styles.items():
        figures.setdefault(style, {})["judges"] = judge.figures
        for count in (count for count in counts if f"{count} images" not in figures[style]):
            run = folder / f"{style.replace(' ', '-')}-{count}"
            labels = judges.learned[:count]
            words = [judges.icons.words[label] for label in labels]
            write_dataset(run / "dataset", judges.icons.draw(style, labels), words)
            lora = train_lora(run, base=base, home=home, changes=changes)
            figures[style][f"{count} images"], sheet = judges.judge(lora, style)
            Image.fromarray(sheet).save(run / "samples.png")
            progress.write_json(figures, path)
            progress.log(f"styles: {style}, {count} images: {figures[style][f'{count} images']}")
    return figures


def report_styles(work: Path, pack: Path) -> None:
    """Judge the demo's recipe in every style; write WORK/styles."""
    judges = Judges.load(work, pack)
    judge_styles(judges, base=pack / "base", home=Home(work / "home"), folder=work / "styles")
