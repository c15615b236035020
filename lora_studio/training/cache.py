"""Latents and text embeddings on disk, named by the content that they were made of: an edited image is encoded again,
an unchanged one never.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedModel

from lora_studio.dataset.images import read_image
from lora_studio.errors import JobError
from lora_studio.files import write_bytes
from lora_studio.training.batches import Item
from lora_studio.training.text import encode_text

VERSION = "1"  # of what is stored: raise it when the same input gives another content
Progress = Callable[[int, int], None]


class Stopped(Exception):
    """The user asked to stop while something was being prepared."""


def weights_hash(*modules: nn.Module) -> str:
    """SHA-256 over the weights of modules, whatever file they came from."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(memoryview(flat.numpy()))
    return digest.hexdigest()


@dataclass(frozen=True)
class LatentCache:
    """Mean and log-variance of the VAE's posterior for each image at its place in its bucket, fp32, [C, H/8, W/8]."""

    folder: Path
    vae_hash: str

    def file(self, item: Item) -> Path:
        """Where the latents of an image are kept."""
        return _named(self.folder, "latents", VERSION, item.sha256, str(item.placement), self.vae_hash)

    def load(self, item: Item) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of one image."""
        content = load_file(self.file(item))
        return content["mean"], content["logvar"]

    def fill(
        self,
        items: Sequence[Item],
        vae: AutoencoderKL,
        *,
        should_stop: Callable[[], bool],
        on_progress: Progress,
        half: torch.dtype | None = None,
    ) -> int:
        """Encode what is missing and return how many that were: in `half` if given, else in fp32.

        Where half precision overflows, as it does with SDXL's own VAE, this image and the rest are encoded in fp32.

        Raises JobError, naming the image, if the VAE answers with NaN; InputError if an image cannot be read; Stopped.
        """
        missing = [item for item in _distinct(items, self.file) if not _usable(self.file(item))]
        for done, item in enumerate(missing):
            if should_stop():
                raise Stopped
            on_progress(done, len(missing))
            image = read_image(item.path)
            mean, logvar = encode_image(vae, image, item, half)
            if half is not None and not _finite(mean, logvar):
                half = None
                mean, logvar = encode_image(vae, image, item)
            if not _finite(mean, logvar):
                raise JobError(
                    f"The VAE turns {item.path.name!r} into numbers that are not finite.",
                    "Remove this image, or choose another VAE (`vae`, like madebyollin/sdxl-vae-fp16-fix).",
                    code="latent_nan",
                )
            write_bytes(self.file(item), save({"mean": mean, "logvar": logvar}))
        return len(missing)


def _finite(*values: Tensor) -> bool:
    return all(bool(value.isfinite().all()) for value in values)


@torch.no_grad()
def encode_image(
    vae: AutoencoderKL, image: Image.Image, item: Item, half: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and log-variance [C, H/8, W/8] in fp32 of an image, scaled and cropped as its placement says.

    With `half` the convolutions are computed in it, the sums in fp32; what overflows there is not finite here.
    """
    placement = item.placement
    left, top = placement.crop
    width, height = placement.bucket
    if image.size != placement.scaled:
        image = image.resize(placement.scaled, Image.Resampling.LANCZOS)
    image = image.crop((left, top, left + width, top + height))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # [H, W, 3] -> [1, 3, H, W]
    with torch.autocast(vae.device.type, half, enabled=half is not None):
        posterior = vae.encode(pixels.to(vae.device, vae.dtype) / 127.5 - 1).latent_dist
    return posterior.mean[0].float().cpu().contiguous(), posterior.logvar[0].float().cpu().contiguous()


@dataclass(frozen=True)
class TextCache:
    """Embeddings of captions by text encoders that are not trained."""

    folder: Path
    encoders_hash: str
    clip_skip: int

    def file(self, caption: str) -> Path:
        """Where the embeddings of a caption are kept."""
        return _named(self.folder, "text", VERSION, caption, self.encoders_hash, str(self.clip_skip))

    def load(self, caption: str) -> tuple[Tensor, Tensor]:
        """Embeddings [77, D] and pooled embeddings [P] of one caption."""
        content = load_file(self.file(caption))
        return content["hidden"], content["pooled"]

    @torch.no_grad()
    def fill(
        self,
        captions: Iterable[str],
        text_encoders: Sequence[PreTrainedModel],
        tokenizers: Sequence[CLIPTokenizer],
        *,
        should_stop: Callable[[], bool],
        on_progress: Progress,
    ) -> int:
        """Encode what is missing and return how many that were. Raises Stopped."""
        missing = [caption for caption in _distinct(captions, self.file) if not _usable(self.file(caption))]
        for done, caption in enumerate(missing):
            if should_stop():
                raise Stopped
            on_progress(done, len(missing))
            hidden, pooled = encode_text(text_encoders, tokenizers, [caption], self.clip_skip)
            write_bytes(
                self.file(caption),
                save({"hidden": hidden[0].cpu().contiguous(), "pooled": pooled[0].cpu().contiguous()}),
            )
        return len(missing)


def _named(folder: Path, *parts: str) -> Path:
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return folder / key[:2] / f"{key}.safetensors"


def _distinct(values: Iterable, file: Callable[..., Path]) -> list:
    return list({file(value): value for value in values}.values())


def _usable(file: Path) -> bool:
    """Whether a cache file is there and whole."""
    try:
        load_file(file)
    except (OSError, SafetensorError):
        return False
    return True
