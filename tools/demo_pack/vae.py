"""The autoencoder of the base: AutoencoderKL with 4 latent channels and factor 8.

Trained from scratch on emoji on white, then continued on renderings of them in many styles.
"""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from demo_pack import pictures, progress
from demo_pack.pictures import Picture
from demo_pack.progress import Length, StepRng
from demo_pack.renderings import HELD_OUT_STYLES, Icon, random_rendering

BATCH = 12
RENDERINGS_STAGE = "vae-renderings"
RENDERED_LATENTS = "rendered_latents"  # the folder in WORK with latents of renderings
KL_WEIGHT = 1e-5  # small: latents keep the colours; 3e-4 loses reds and greens
EDGE_WEIGHT = 0.5
INKED = 0.25  # share of black and white images in the decoder's training, for crisp edges in such styles
RENDERED = 7  # of BATCH are renderings when the autoencoder is continued on them; the rest is on white
DECODER_NOISE = 0.08  # maximum, relative to the latents' deviation, while only the decoder trains
LOW_WEIGHT = 1.0  # of the difference of 8 x 8 averages, which is most sensitive to lost colours
# Without an anchor the model stays grey for a long time. So the first three latent channels are pulled towards the
# averages of red, green and blue, with a weight that falls to 0 within ANCHOR_STEPS.
ANCHOR_WEIGHT, ANCHOR_SCALE, ANCHOR_STEPS = 0.2, 3.0, 1000


def build() -> AutoencoderKL:
    """Build the model, 1.6 M weights; the full-resolution level is narrow, as it takes most of the time."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=pictures.RESOLUTION,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def to_signal(rgb: NDArray[np.uint8] | Tensor) -> Tensor:
    """Convert uint8 [B, H, W, 3] to float [B, 3, H, W] in -1..1."""
    return torch.as_tensor(rgb).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of each image pair in -1..1, [B, 3, H, W] -> [B]."""
    error = ((a.clamp(-1, 1) - b.clamp(-1, 1)) / 2).square().mean((1, 2, 3))
    return -10 * error.clamp_min(1e-10).log10()


def _edges(x: Tensor) -> Tensor:
    """Return the Sobel gradients of each channel, [B, 3, H, W] -> [B, 6, H-2, W-2]."""
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], device=x.device) / 4
    both = torch.stack([kernel, kernel.T])[:, None].repeat(3, 1, 1, 1)
    return functional.conv2d(x, both, groups=3)


def _augment(x: Tensor, rng: StepRng) -> Tensor:
    """Mirror half of the images and permute the colour channels of half (so that no colour is rare), [B, 3, H, W]."""
    count = len(x)
    order = rng.uniform(count, 3).argsort(1)
    order[rng.uniform(count) < 0.5] = torch.arange(3)
    x = x.gather(1, order[:, :, None, None].expand_as(x))
    return torch.where((rng.uniform(count) < 0.5).view(-1, 1, 1, 1), x.flip(3), x)


def _ink(x: Tensor, rng: StepRng) -> Tensor:
    """Turn a share INKED of the images to black and white, each at a random brightness threshold, [B, 3, H, W]."""
    count = len(x)
    level = (1.2 * rng.uniform(count) - 0.6).view(-1, 1, 1, 1)
    chosen = (rng.uniform(count) < INKED).view(-1, 1, 1, 1)
    return torch.where(chosen, torch.where(x.mean(1, keepdim=True) < level, -1.0, 1.0), x)


def _difference(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the reconstruction loss of y against x, both [B, 3, H, W], and its part from 8 x 8 averages."""
    edge = (_edges(x) - _edges(y)).abs().mean()
    low = (functional.avg_pool2d(x, 8) - functional.avg_pool2d(y, 8)).abs().mean()
    return (x - y).abs().mean() + (x - y).square().mean() + EDGE_WEIGHT * edge + LOW_WEIGHT * low, low


def render(rgba: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], rng: random.Random) -> Tensor:
    """Return a random rendering of each icon in -1..1, uint8 [B, H, W, 4] -> [B, 3, H, W]."""
    icons = [Icon.from_rgba(one) for one in rgba]
    partners = rng.sample(icons, len(icons))
    images = [random_rendering(icon, partner, rng).image for icon, partner in zip(icons, partners, strict=True)]
    return torch.stack(images) * 2 - 1


def reference_images(words: Sequence[Picture], rgba: NDArray[np.uint8], count: int) -> dict[str, Tensor]:
    """Return images of emoji that train no model, in -1..1: on white, as random renderings, in each held-out style.

    There are `count` images of each of the first two kinds, and a quarter of it in each held-out style.
    """
    unseen = [i for i, word in enumerate(words) if word.held_out and word.set_name in pictures.TRAINING_SETS]
    chosen = rgba[unseen[:: max(1, len(unseen) // count)][:count]]
    icons = [Icon.from_rgba(one) for one in chosen[::4]]
    images = {
        "on white": to_signal(pictures.on_white(chosen)),
        "renderings": render(chosen, random.Random("reference")),
    }
    return images | {
        name: torch.stack([draw(icon) for icon in icons]) * 2 - 1 for name, draw in HELD_OUT_STYLES.items()
    }


def mixed_batch(rgba: NDArray[np.uint8], rng: StepRng) -> Tensor:
    """Draw BATCH icons of uint8 [N, H, W, 4]: RENDERED renderings, then icons on white, augmented, float in -1..1."""
    chosen = rgba[rng.integers(len(rgba), BATCH).numpy()]
    on_white = _ink(to_signal(pictures.on_white(chosen[RENDERED:])), rng)
    return _augment(torch.cat([render(chosen[:RENDERED], rng.python), on_white]), rng).contiguous()


def _autoencode(model: AutoencoderKL, x: Tensor, rng: StepRng, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Decode a sample of the posterior of x [B, 3, H, W]; return it, the posterior's mean and its KL divergence."""
    with progress.autocast(device):
        posterior = model.encode(x).latent_dist
        y = model.decode(posterior.mean + posterior.std * rng.normal(posterior.mean)).sample
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    return y.float(), mean, 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def _load_images(work: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Load all images of the training sets on white, those to train on (both uint8), and 128 held-out ones (-1..1)."""
    words, rgba = pictures.load(work, pictures.TRAINING_SETS)
    held = np.array([word.held_out for word in words])
    images = torch.from_numpy(pictures.on_white(rgba))
    return images, images[~held], to_signal(images[held][:128])


def _preview(name: str, model: AutoencoderKL, test: Tensor, work: Path, device: str) -> None:
    y = reconstruct(model, test, device)
    progress.log(f"{name}: held out {psnr(test, y).mean():.2f} dB")
    strip = torch.cat([torch.cat([*test[::8][:16]], 2), torch.cat([*y[::8][:16]], 2)], 1)
    pixels = strip.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(work / "vae.png")


def _log_psnr(stage: str, model: AutoencoderKL, images: dict[str, Tensor], device: str) -> None:
    for name, x in images.items():
        progress.log(f"{stage}: {name} {psnr(x, reconstruct(model, x, device)).mean():.2f} dB")


def train(work: Path, *, length: Length, seed: int, device: str) -> None:
    """Train both halves, then write WORK/vae (with its scaling factor) and WORK/latents.pt."""
    torch.manual_seed(seed)
    model = build().to(device)
    images, seen, test = _load_images(work)

    def loss_of(rng: StepRng) -> tuple[Tensor, dict[str, float]]:
        x = to_signal(seen[rng.integers(len(seen), BATCH)])
        x = _augment(x, rng).contiguous().to(device)
        y, mean, kl = _autoencode(model, x, rng, device)
        difference, low = _difference(x, y)
        anchor = (mean[:, :3] - ANCHOR_SCALE * functional.avg_pool2d(x, 8)).square().mean()
        anchor_weight = ANCHOR_WEIGHT * max(0.0, 1 - rng.step / ANCHOR_STEPS)
        loss = difference + anchor_weight * anchor + KL_WEIGHT * kl
        return loss, {"psnr": psnr(x, y.detach()).mean().item(), "low": low.item(), "kl": kl.item()}

    progress.train(
        "vae",
        {"vae": model},
        loss_of,
        work=work,
        length=length,
        seed=seed,
        lr=2e-3,
        weight_decay=1e-4,
        warmup=50,
        preview=lambda: _preview("vae", model, test, work, device),
        preview_minutes=4,
    )
    _write_latents(model, images, work, device)


def train_on_renderings(work: Path, *, length: Length, seed: int, device: str) -> None:
    """Continue training both halves of WORK/vae on renderings and images on white; write it and WORK/latents.pt again.

    Latents change, so decoder and UNet have to be trained after it. Raises SystemExit if the decoder already was.
    """
    if (work / "decoder.ckpt").exists() and not (work / f"{RENDERINGS_STAGE}.ckpt").exists():
        raise SystemExit(f"{work / 'decoder.ckpt'} belongs to the present encoder, which would change: remove it first")
    torch.manual_seed(seed)
    model = AutoencoderKL.from_pretrained(work / "vae").to(device)
    words, rgba = pictures.load(work, pictures.TAGGER_SETS)
    references = reference_images(words, rgba, 48)
    rgba = rgba[[not word.held_out for word in words]]

    def loss_of(rng: StepRng) -> tuple[Tensor, dict[str, float]]:
        x = mixed_batch(rgba, rng).to(device)
        y, _, kl = _autoencode(model, x, rng, device)
        difference, low = _difference(x, y)
        ratio = psnr(x, y.detach())
        figures = {"rendered": ratio[:RENDERED].mean().item(), "on white": ratio[RENDERED:].mean().item()}
        return difference + KL_WEIGHT * kl, {**figures, "low": low.item(), "kl": kl.item()}

    progress.train(
        RENDERINGS_STAGE,
        {"vae": model},
        loss_of,
        work=work,
        length=length,
        seed=seed,
        lr=1e-3,
        weight_decay=1e-4,
        warmup=50,
        preview=lambda: _log_psnr(RENDERINGS_STAGE, model, references, device),
        preview_minutes=12,
    )
    _write_latents(model, _load_images(work)[0], work, device)


def adopt(work: Path, pack: Path) -> None:
    """Write WORK/vae and WORK/latents.pt from the exported pack."""
    model = AutoencoderKL.from_pretrained(pack / "base" / "vae", torch_dtype=torch.float32)
    _write_latents(model, _load_images(work)[0], work, "cpu", model.config.scaling_factor)


def train_decoder(work: Path, *, length: Length, seed: int, device: str) -> None:
    """Continue training the decoder with the frozen encoder of WORK/vae, then write WORK/decoder.

    Latents do not change, so the UNet can be trained at the same time. A little noise on them makes the decoder robust
    to sampled latents.
    """
    torch.manual_seed(seed)
    model = AutoencoderKL.from_pretrained(work / "vae").to(device)
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    words, rgba = pictures.load(work, pictures.TAGGER_SETS)
    references = reference_images(words, rgba, 48)
    rgba = rgba[[not word.held_out for word in words]]
    spread = 1 / model.config.scaling_factor

    def loss_of(rng: StepRng) -> tuple[Tensor, dict[str, float]]:
        x = mixed_batch(rgba, rng).to(device)
        with progress.autocast(device):
            with torch.no_grad():
                mean = model.encode(x).latent_dist.mean.float()
            noise = DECODER_NOISE * spread * rng.uniform(BATCH, 1, 1, 1).to(device) * rng.normal(mean)
            y = model.decode(mean + noise).sample.float()
        difference, low = _difference(x, y)
        return difference, {"psnr": psnr(x, y.detach()).mean().item(), "low": low.item()}

    progress.train(
        "decoder",
        {"vae": model},
        loss_of,
        work=work,
        length=length,
        seed=seed,
        lr=1.5e-3,
        weight_decay=1e-4,
        warmup=50,
        preview=lambda: _log_psnr("decoder", model, references, device),
        preview_minutes=12,
    )
    model.save_pretrained(work / "decoder")


def finished(work: Path, device: str = "cpu") -> AutoencoderKL:
    """Load the autoencoder with the latest decoder: from WORK/decoder, its checkpoint, or WORK/vae."""
    if progress.finished("decoder", work):
        return AutoencoderKL.from_pretrained(work / "decoder").to(device)
    model = AutoencoderKL.from_pretrained(work / "vae")
    weights = progress.ema_weights("decoder", work)
    if weights is not None:
        model.load_state_dict(weights["vae"])
    return model.to(device)


@torch.no_grad()
def reconstruct(model: AutoencoderKL, x: Tensor, device: str) -> Tensor:
    """Decode the posterior means of images in -1..1, [B, 3, H, W] on the CPU, in float32."""
    parts = [model.decode(model.encode(part.to(device)).latent_dist.mean).sample.cpu() for part in x.split(32)]
    return torch.cat(parts)


@torch.no_grad()
def _write_latents(model: AutoencoderKL, images: Tensor, work: Path, device: str, scale: float | None = None) -> None:
    """Write WORK/vae, and WORK/latents.pt: scaled posterior means of the training images and of their mirror images.

    Latents of renderings by an earlier encoder are deleted. Without `scale`, the scaling factor is set so that latents
    have a standard deviation of 1.
    """

    def encode(flipped: bool) -> Tensor:
        parts = []
        for part in images.split(64):
            x = to_signal(part)
            parts.append(model.encode((x.flip(3) if flipped else x).to(device)).latent_dist.mean.cpu())
        return torch.cat(parts)

    plain, mirrored = encode(False), encode(True)
    if scale is None:
        scale = 1 / plain.std().item()
        model.register_to_config(scaling_factor=scale)
    shutil.rmtree(work / RENDERED_LATENTS, ignore_errors=True)
    model.save_pretrained(work / "vae")
    progress.save_atomic({"plain": plain * scale, "mirrored": mirrored * scale}, work / "latents.pt")
    progress.log(f"vae: {len(plain)} latents, scaling factor {scale:.4f}")
