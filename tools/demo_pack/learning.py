"""Whether a LoRA learns on the base: trains the demo's, draws with it at several strengths, and lets a judge look.

The judge of style is a linear classifier on how much of a picture has which brightness and colourfulness, wherever that
is. It learned from high-contrast pictures that the LoRA has not seen, and from what the base draws and was trained on,
all as the autoencoder gives them back. How fine its levels are and how free its weights were chosen by how often it
errs on pictures that it did not learn from, which is measured each time. The judge of content is the tagger.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from demo_pack import pictures, progress, tagger, unet, vae
from demo_pack.pictures import Picture
from lora_studio.example import BASE, TRIGGER, run_demo
from lora_studio.lora.header import read_lora_header
from lora_studio.sampling.adapter import apply_lora
from lora_studio.sampling.pipeline import load_sampling_pipeline
from lora_studio.settings.choices import Precision
from lora_studio.workspace.project import Home

STRENGTHS = (0.0, 0.4, 0.7, 0.8, 0.9, 1.0, 1.2)
PROMPTS, OTHERS = 25, 75  # to judge with, and other ones for the classifier to learn the base's look from
SEEDS = (21, 22, 23, 24)
LEVELS = 12  # of brightness, and of colourfulness
WEIGHT_DECAY = 1e-6
CONTRAST = pictures.HELD_OUT_SETS[1]
STYLE = {"black", "white"}


def look(rgb: NDArray[np.uint8]) -> Tensor:
    """Shares of LEVELS x LEVELS brightnesses and colourfulnesses, of uint8 [N, H, W, 3] at 64 x 64: float [N, 144]."""
    x = functional.adaptive_avg_pool2d(torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255, 64)
    brightness, colourfulness = x.mean(1), x.amax(1) - x.amin(1)
    level = [(value * LEVELS).long().clamp(max=LEVELS - 1).flatten(1) for value in (brightness, colourfulness)]
    joint = level[0] * LEVELS + level[1]
    return torch.zeros(len(x), LEVELS**2).scatter_add_(1, joint, torch.full(joint.shape, 1 / joint.shape[1]))


def fit_classifier(styled: Tensor, plain: Tensor) -> nn.Linear:
    """Logistic regression with a little weight decay, both kinds weighing the same; positive means styled."""
    model = nn.Linear(styled.shape[1], 1)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.softplus(-model(styled)).mean() + functional.softplus(model(plain)).mean()
        loss = loss + WEIGHT_DECAY * model.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


def _draw(pipeline: StableDiffusionXLPipeline, prompts: Sequence[str]) -> NDArray[np.uint8]:
    """Every prompt with every seed, uint8 [prompts * seeds, 128, 128, 3]."""
    repeated = [prompt for prompt in prompts for _ in SEEDS]
    return unet.draw_pictures(pipeline, repeated, [*SEEDS] * len(prompts))


def _unseen(work: Path) -> tuple[list[Picture], list[Picture]]:
    """Pictures of the base's training sets to draw by name: those to judge with, and others.

    Names that ask for black or white by themselves are left out: the base draws them in the style without any LoRA.
    """
    known = [word for word in pictures.load(work, pictures.TRAINING_SETS)[0] if not (word.held_out or word.is_flag)]
    styled = {word.label for word in pictures.load(work, [CONTRAST])[0] if STYLE.isdisjoint(word.label.split())}
    by_label = {word.label: word for word in known if word.label in styled}
    chosen = random.Random("learning").sample([by_label[label] for label in sorted(by_label)], PROMPTS + OTHERS)
    return chosen[:PROMPTS], chosen[PROMPTS:]


def _style_judge(
    work: Path, pipeline: StableDiffusionXLPipeline, words: Sequence[Picture], others: Sequence[Picture]
) -> tuple[nn.Linear, dict[str, float]]:
    """The classifier, from half of the pictures whose names are not among `words`, and its errors on the other half."""
    asked = {word.label for word in words}
    contrast_words, contrast = pictures.load(work, [CONTRAST])
    seen_words, seen = pictures.load(work, pictures.TRAINING_SETS)
    styled = contrast[[i for i, word in enumerate(contrast_words) if word.label not in asked][::2]]
    usual = seen[[i for i, word in enumerate(seen_words) if word.label not in asked][::4]]
    kinds = {
        "high contrast": look(_given_back(pipeline, styled)),
        "trained on": look(_given_back(pipeline, usual)),
        "drawn": look(_draw(pipeline, [word.label for word in others])),
    }
    half = {kind: len(looks) // 2 for kind, looks in kinds.items()}
    learned = {kind: looks[: half[kind]] for kind, looks in kinds.items()}
    judge = fit_classifier(learned["high contrast"], torch.cat([learned["trained on"], learned["drawn"]]))
    called = {kind: _share(judge, looks[half[kind] :]) for kind, looks in kinds.items()}
    return judge, called


def _given_back(pipeline: StableDiffusionXLPipeline, rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures as the autoencoder gives them back: what is drawn has its blur and its fringes, too."""
    back = vae.reconstruct(pipeline.vae, vae.to_signal(pictures.on_white(rgba)), "cpu")
    return back.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def _share(judge: nn.Linear, looks: Tensor) -> float:
    return round((judge(looks) > 0).float().mean().item(), 3)


def learning(work: Path, seer: tagger.Tagger) -> dict[str, object]:
    """Figures of the demo's LoRA: the share called high-contrast by strength, and the share that keep content.

    Beside them, the share that the judge calls high-contrast of pictures whose kind is known. Content: how often the
    tagger's likeliest tags hold the prompt's label or subgroup. Strength 0 sets the mark.
    """
    out = work / "demo"
    home = Home(work / "home")
    if not out.exists():
        done = run_demo(out, home=home, steps=None, on_event=lambda event: None, on_stage=progress.say)
        progress.write_json({"seconds": round(done.seconds, 1)}, work / "demo.json")
    lora = read_lora_header(next(out.glob("*.safetensors")))
    words, others = _unseen(work)
    repeated = [word for word in words for _ in SEEDS]
    pipeline = load_sampling_pipeline(BASE, home=home, precision=Precision.FP32).pipe
    pipeline.set_progress_bar_config(disable=True)
    judge, called = _style_judge(work, pipeline, words, others)
    prompts = [f"{TRIGGER}, {word.label}" for word in words]
    styled: dict[str, float] = {}
    content: dict[str, float] = {}
    rows = []
    with apply_lora(pipeline, lora) as adapter:
        for strength in STRENGTHS:
            adapter.set_strength(strength)
            drawn = _draw(pipeline, prompts)
            styled[f"{strength:g}"] = _share(judge, look(drawn))
            content[f"{strength:g}"] = round(float(seer.right(seer.probabilities(drawn), repeated).mean()), 3)
            rows.append(np.concatenate(list(drawn[:: len(SEEDS)][:12]), 1))
    Image.fromarray(np.concatenate(rows)).save(work / "learning.png")
    return {"high contrast by strength": styled, "content by strength": content, "called high contrast": called}
