"""Latents of random renderings, with the words for their captions: what the UNet learns styles from.

They are computed once, as encoding an image takes as long as its share of a training step.
"""

import dataclasses
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from demo_pack import captions, pictures, progress, vae
from demo_pack.renderings import Icon, Rendering, random_rendering

ROUNDS = 8  # renderings of each icon
ENCODED = 64  # images at a time


@dataclasses.dataclass(frozen=True)
class RenderedLatent:
    """Scaled latents of a rendering [4, h, w] in float16, and what it shows.

    `icon` and `partner` are indices into the training sets; `partner` is None if the image has one icon.
    """

    latent: Tensor
    icon: int
    partner: int | None
    style: tuple[str, ...]
    background: str


def write(work: Path, *, seed: int, device: str, rounds: int = ROUNDS) -> None:
    """Write the missing files WORK/rendered_latents/ROUND.pt, each with a rendering of every trained icon."""
    folder = work / vae.RENDERED_LATENTS
    folder.mkdir(exist_ok=True)
    missing = [number for number in range(rounds) if not (folder / f"{number}.pt").exists()]
    if not missing:
        return
    model = vae.finished(work, device).eval()
    words, rgba = pictures.load(work, pictures.TRAINING_SETS)
    usable = [i for i, word in enumerate(words) if not (word.held_out or word.is_flag)]
    for number in missing:
        rng = random.Random(f"{seed}/{number}")
        partners = [rng.choice(usable) for _ in usable]
        latents, rows = [], []
        for start in range(0, len(usable), ENCODED):
            chosen = range(start, min(start + ENCODED, len(usable)))
            renderings = []
            for icon, partner in ((usable[k], partners[k]) for k in chosen):
                mirrored = words[icon].subgroup not in captions.ONE_WAY and rng.random() < 0.5
                image = rgba[icon][:, ::-1].copy() if mirrored else rgba[icon]
                found = random_rendering(Icon.from_rgba(image), Icon.from_rgba(rgba[partner]), rng)
                renderings.append(found)
                rows.append(_row(found, icon, partner))
            latents.append(_encode(model, torch.stack([found.image for found in renderings]), device))
        progress.save_atomic({"latents": torch.cat(latents), "rows": rows}, folder / f"{number}.pt")
        progress.log(f"rendered latents: round {number + 1} of {rounds}, {len(rows)} images")


def load(work: Path) -> list[RenderedLatent]:
    """Load every round that `write` has written."""
    found = []
    for path in sorted((work / vae.RENDERED_LATENTS).glob("*.pt")):
        content = torch.load(path, weights_only=True)
        found += [
            RenderedLatent(latent, row["icon"], row["partner"], tuple(row["style"]), row["background"])
            for latent, row in zip(content["latents"], content["rows"], strict=True)
        ]
    return found


def _row(rendering: Rendering, icon: int, partner: int) -> dict[str, Any]:
    return {
        "icon": icon,
        "partner": partner if rendering.is_pair else None,
        "style": list(rendering.style),
        "background": rendering.background,
    }


@torch.no_grad()
def _encode(model: AutoencoderKL, images: Tensor, device: str) -> Tensor:
    """Return scaled posterior means of images in 0..1, [B, 3, H, W] -> float16 [B, 4, H/8, W/8] on the CPU."""
    with progress.autocast(device):
        mean = model.encode((images * 2 - 1).to(device)).latent_dist.mean.float()
    return (mean * model.config.scaling_factor).half().cpu()
