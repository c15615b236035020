"""Test whether a LoRA learns on the base: train the demo's LoRA, sample at several strengths, and classify the samples.

Style is judged by a linear classifier on a joint histogram of brightness and colourfulness. It is trained on
high-contrast images that the LoRA has not seen, and on samples and training images of the base, all of them encoded and
decoded by the autoencoder. The number of levels and the weight decay were chosen by its errors on unseen images,
which are measured each time. Content is judged by the tagger.
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
PROMPTS, OTHERS = 25, 75  # prompts of the evaluation, and those of samples that train the classifier
SEEDS = (21, 22, 23, 24)
LEVELS = 12  # of brightness, and of colourfulness
WEIGHT_DECAY = 1e-6
CONTRAST = pictures.HELD_OUT_SETS[1]
STYLE = {"black", "white"}


def style_histogram(rgb: NDArray[np.uint8]) -> Tensor:
    """Return joint histograms of brightness and colourfulness at 64 x 64: uint8 [N, H, W, 3] -> float [N, 144]."""
    x = functional.adaptive_avg_pool2d(torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255, 64)
    brightness, colourfulness = x.mean(1), x.amax(1) - x.amin(1)
    level = [(value * LEVELS).long().clamp(max=LEVELS - 1).flatten(1) for value in (brightness, colourfulness)]
    joint = level[0] * LEVELS + level[1]
    return torch.zeros(len(x), LEVELS**2).scatter_add_(1, joint, torch.full(joint.shape, 1 / joint.shape[1]))


def fit_classifier(styled: Tensor, plain: Tensor) -> nn.Linear:
    """Fit a logistic regression with weight decay, both classes weighted equally; positive means styled."""
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


def sample(pipeline: StableDiffusionXLPipeline, prompts: Sequence[str]) -> NDArray[np.uint8]:
    """Sample every prompt with every seed, uint8 [prompts * seeds, 128, 128, 3]."""
    repeated = [prompt for prompt in prompts for _ in SEEDS]
    return unet.sample_images(pipeline, repeated, [*SEEDS] * len(prompts))


def choose_words(work: Path) -> tuple[list[Picture], list[Picture]]:
    """Choose emoji of the base's training sets to sample by name: for the evaluation, and for the classifier.

    Names that contain black or white are excluded: the base draws them in the style without any LoRA.
    """
    known = [word for word in pictures.load(work, pictures.TRAINING_SETS)[0] if not (word.held_out or word.is_flag)]
    styled = {word.label for word in pictures.load(work, [CONTRAST])[0] if STYLE.isdisjoint(word.label.split())}
    by_label = {word.label: word for word in known if word.label in styled}
    chosen = random.Random("learning").sample([by_label[label] for label in sorted(by_label)], PROMPTS + OTHERS)
    return chosen[:PROMPTS], chosen[PROMPTS:]


def _fit_style_judge(
    work: Path, pipeline: StableDiffusionXLPipeline, words: Sequence[Picture], others: Sequence[Picture]
) -> tuple[nn.Linear, dict[str, float]]:
    """Fit the classifier on half of the images with names not in `words`; return it and its rates on the others."""
    asked = {word.label for word in words}
    contrast_words, contrast = pictures.load(work, [CONTRAST])
    seen_words, seen = pictures.load(work, pictures.TRAINING_SETS)
    styled = contrast[[i for i, word in enumerate(contrast_words) if word.label not in asked][::2]]
    usual = seen[[i for i, word in enumerate(seen_words) if word.label not in asked][::4]]
    kinds = {
        "high contrast": style_histogram(reconstruct(pipeline, pictures.on_white(styled))),
        "trained on": style_histogram(reconstruct(pipeline, pictures.on_white(usual))),
        "drawn": style_histogram(sample(pipeline, [word.label for word in others])),
    }
    half = {kind: len(looks) // 2 for kind, looks in kinds.items()}
    learned = {kind: looks[: half[kind]] for kind, looks in kinds.items()}
    judge = fit_classifier(learned["high contrast"], torch.cat([learned["trained on"], learned["drawn"]]))
    called = {kind: styled_share(judge, looks[half[kind] :]) for kind, looks in kinds.items()}
    return judge, called


def reconstruct(pipeline: StableDiffusionXLPipeline, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encode and decode images uint8 [N, H, W, 3] with the autoencoder, whose artefacts samples have too."""
    back = vae.reconstruct(pipeline.vae, vae.to_signal(rgb), "cpu")
    return back.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def styled_share(judge: nn.Linear, looks: Tensor) -> float:
    """Return the share of histograms [N, bins] that the classifier calls styled."""
    return round((judge(looks) > 0).float().mean().item(), 3)


def learning(work: Path, content_judge: tagger.Tagger) -> dict[str, object]:
    """Return, by strength, the share of the demo LoRA's samples with the style and the share with the right content.

    The classifier's rates on images of known kinds come with them. Content: the tagger's likeliest tags contain the
    prompt's label or subgroup; strength 0 is the reference.
    """
    out = work / "demo"
    home = Home(work / "home")
    if not out.exists():
        done = run_demo(out, home=home, steps=None, on_event=lambda event: None, on_stage=progress.log)
        progress.write_json({"seconds": round(done.seconds, 1)}, work / "demo.json")
    lora = read_lora_header(next(out.glob("*.safetensors")))
    words, others = choose_words(work)
    repeated = [word for word in words for _ in SEEDS]
    pipeline = load_sampling_pipeline(BASE, home=home, precision=Precision.FP32).pipe
    pipeline.set_progress_bar_config(disable=True)
    judge, called = _fit_style_judge(work, pipeline, words, others)
    prompts = [f"{TRIGGER}, {word.label}" for word in words]
    styled: dict[str, float] = {}
    content: dict[str, float] = {}
    rows = []
    with apply_lora(pipeline, lora) as adapter:
        for strength in STRENGTHS:
            adapter.set_strength(strength)
            drawn = sample(pipeline, prompts)
            styled[f"{strength:g}"] = styled_share(judge, style_histogram(drawn))
            content[f"{strength:g}"] = round(
                float(content_judge.recognised(content_judge.probabilities(drawn), repeated).mean()), 3
            )
            rows.append(np.concatenate(list(drawn[:: len(SEEDS)][:12]), 1))
    Image.fromarray(np.concatenate(rows)).save(work / "learning.png")
    return {"high contrast by strength": styled, "content by strength": content, "called high contrast": called}
