"""Latents and text embeddings on disk, named by the content that they were made of: an edited image is encoded again,
an unchanged one never.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedModel

from lora_studio.dataset.buckets import VAE_FACTOR
from lora_studio.dataset.images import decode, file_sha256
from lora_studio.dataset.masks import read_mask
from lora_studio.errors import JobError
from lora_studio.files import write_bytes
from lora_studio.training.batches import Item
from lora_studio.training.text import CHUNK, encode_text

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
    """Mean and log-variance of the VAE's posterior for each view of an image, fp32, [C, H/8, W/8]; and its mask."""

    folder: Path
    vae_hash: str

    def file(self, item: Item) -> Path:
        """Where the latents of an image, cut and mirrored as the item says, are kept."""
        more = ["mirrored"] * item.flipped + ["colours below transparency"] * _keeps_colours(item)
        return _named(self.folder, "latents", VERSION, item.sha256, str(item.placement), self.vae_hash, *more)

    def load(self, item: Item) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of one image. Raises JobError if they are gone."""
        content = _read(self.file(item), item.path.name)
        return content["mean"], content["logvar"]

    def mask_file(self, item: Item) -> Path:
        """Where the mask of an item that has one is kept; a mirrored item's is made of it."""
        assert item.mask is not None
        return _named(self.folder, "mask", VERSION, item.mask.sha256, str(item.placement), str(item.mask.alpha))

    def load_mask(self, item: Item) -> Tensor:
        """The share of each latent that counts, [1, H/8, W/8] in 0..1: all of it for an item without a mask."""
        if item.mask is None:
            width, height = item.placement.bucket
            return torch.ones(1, height // VAE_FACTOR, width // VAE_FACTOR)
        mask = _read(self.mask_file(item), item.path.name)["mask"]
        return mask.flip(-1) if item.flipped else mask

    def fill(
        self,
        items: Sequence[Item],
        vae: AutoencoderKL,
        *,
        should_stop: Callable[[], bool],
        on_progress: Progress,
        half: torch.dtype | None = None,
    ) -> int:
        """Encode what is missing and return how many that were; in `half` if given, else in fp32. Masks are made, too.

        Where half precision overflows, as it does with SDXL's own VAE, this image and the rest are encoded in fp32.

        Raises JobError, naming the image, if the VAE answers with NaN or the file has changed since it was read first;
        InputError if an image cannot be read; Stopped.
        """
        for item in items:
            if item.mask is not None and not _usable(self.mask_file(item)):
                mask = mask_latents(read_mask(item.mask), item)
                _check_unchanged(item.mask.path, item.mask.sha256)
                write_bytes(self.mask_file(item), save({"mask": mask}))
        missing = [item for item in _distinct(items, self.file) if not _usable(self.file(item))]
        last: tuple[Path, Image.Image] | None = None  # the views of an image stand side by side
        for done, item in enumerate(missing):
            if should_stop():
                raise Stopped
            on_progress(done, len(missing))
            if last is None or last[0] != item.path:
                last = item.path, decode(item.path, with_alpha=_keeps_colours(item)).image
                _check_unchanged(item.path, item.sha256)
            mean, logvar = encode_image(vae, last[1], item, half)
            if half is not None and not _finite(mean, logvar):
                half = None
                mean, logvar = encode_image(vae, last[1], item)
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


def _keeps_colours(item: Item) -> bool:
    """Whether the image keeps the colours below its transparency, since that is its mask, instead of white."""
    return item.mask is not None and item.mask.alpha


def _check_unchanged(path: Path, sha256: str) -> None:
    """Raise JobError if a file is no longer what it was when the dataset was read."""
    try:
        if file_sha256(path) == sha256:
            return
        what = "was changed"
    except OSError:
        what = "vanished"
    raise JobError(
        f"The image {path.name!r} {what} while the run was being prepared.",
        "Start the run again: it reads the images as they are now.",
        code="image_changed",
    )


def cut(image: Image.Image, item: Item) -> Image.Image:
    """The part of an image or mask that the item shows: scaled, cut and mirrored."""
    placement = item.placement
    left, top = placement.crop
    width, height = placement.bucket
    if image.size != placement.scaled:
        image = image.resize(placement.scaled, Image.Resampling.LANCZOS)
    image = image.crop((left, top, left + width, top + height))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if item.flipped else image


@torch.no_grad()
def encode_image(
    vae: AutoencoderKL, image: Image.Image, item: Item, half: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and log-variance [C, H/8, W/8] in fp32 of an image, scaled, cut and mirrored as the item says.

    With `half` the convolutions are computed in it, the sums in fp32; what overflows there is not finite here.
    """
    pixels = torch.from_numpy(np.array(cut(image, item))).permute(2, 0, 1)[None]  # [H, W, 3] -> [1, 3, H, W]
    with torch.autocast(vae.device.type, half, enabled=half is not None):
        posterior = vae.encode(pixels.to(vae.device, vae.dtype) / 127.5 - 1).latent_dist
    return posterior.mean[0].float().cpu().contiguous(), posterior.logvar[0].float().cpu().contiguous()


def mask_latents(mask: Image.Image, item: Item) -> Tensor:
    """A grey mask at the item's place, unmirrored: the mean of each latent's 8 x 8 pixels, [1, H/8, W/8] in 0..1."""
    pixels = torch.from_numpy(np.array(cut(mask, replace(item, flipped=False)))).float()[None, None] / 255
    return torch.nn.functional.avg_pool2d(pixels, VAE_FACTOR)[0].contiguous()


@dataclass(frozen=True)
class TextCache:
    """Embeddings of captions by text encoders that are not trained."""

    folder: Path
    encoders_hash: str
    clip_skip: int
    max_token_length: int = CHUNK

    def file(self, caption: str) -> Path:
        """Where the embeddings of a caption are kept."""
        more = [str(int(self.max_token_length))] if self.max_token_length != CHUNK else []
        return _named(self.folder, "text", VERSION, caption, self.encoders_hash, str(self.clip_skip), *more)

    def load(self, caption: str) -> tuple[Tensor, Tensor]:
        """Embeddings [77 n, D] and pooled embeddings [P] of one caption. Raises JobError if they are gone."""
        content = _read(self.file(caption), f"the caption {caption[:60]!r}")
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
            hidden, pooled = encode_text(text_encoders, tokenizers, [caption], self.clip_skip, self.max_token_length)
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


def _read(file: Path, what: str) -> dict[str, Tensor]:
    try:
        content: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise JobError(
            f"What was cached of {what} is gone or damaged ({file}).",
            "Resume: what is missing is made again from the images, and the run goes on from its last step.",
            code="cache_gone",
        ) from error
    return content


def _usable(file: Path) -> bool:
    """Whether a cache file is there and whole."""
    try:
        load_file(file)
    except (OSError, SafetensorError):
        return False
    return True
