"""Cached latents and text embeddings on disk, keyed by everything that they were computed from: an edited image is
encoded again, an unchanged one never.

Values are stored in 16 bits. fp16 rounds a value by at most 2^-11, or 0.05 %; training adds far more: at the least
noisy timestep of SDXL's schedule the noise is sqrt(0.00085), or 2.9 %, of the latents' standard deviation. So runs in
fp32 use 16 bits, too. A run never uses an encoder's output before it is rounded, so that two runs of a job read the
same values, whichever of them wrote the files.

Files are memory-mapped when they are read and not kept open: ten thousand images take no more memory than ten.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedModel

from lora_studio.dataset.buckets import VAE_FACTOR
from lora_studio.dataset.images.crop import crop_to_bucket
from lora_studio.dataset.images.decode import decode
from lora_studio.dataset.images.header_cache import sha256_of
from lora_studio.dataset.images.masks import alpha_mask, decode_mask_file
from lora_studio.errors import ConfigError, InputError, JobError, StopRequested
from lora_studio.files import write_bytes
from lora_studio.models.load import on_device
from lora_studio.models.text_encoding import CHUNK_TOKENS, encode_text
from lora_studio.training.data.dataset import TrainItem, unreadable_errors

CACHE_VERSION = "2"  # of the file contents: raise it when the same input gives other values
TOKENIZATION_VERSION = "2"  # raise it when only the embeddings of captions change
CPU = torch.device("cpu")
Progress = Callable[[int, int], None]

T = TypeVar("T")


def weights_hash(*modules: nn.Module) -> str:
    """Return a SHA-256 over the structure and weights of modules, independent of the files that they came from."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(f"{module}\n".encode())  # the structure: activations, norms and strides are not in the weights
        for name, value in sorted(module.state_dict().items()):
            flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(memoryview(flat.numpy()))
    return digest.hexdigest()


def encoders_hash(text_encoders: Sequence[PreTrainedModel], tokenizers: Sequence[CLIPTokenizer]) -> str:
    """Return a SHA-256 over the text encoders and the tokenizers with their vocabularies and special tokens."""
    digest = hashlib.sha256(weights_hash(*text_encoders).encode())
    for tokenizer in tokenizers:
        special = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.model_max_length
        digest.update(json.dumps([special, sorted(tokenizer.get_vocab().items())]).encode())
    return digest.hexdigest()


def to_16_bit(value: Tensor) -> Tensor:
    """Return a tensor in 16 bits on the CPU: unchanged if it has 16, else in fp16, or in bf16 if fp16 overflows."""
    value = value.detach().cpu().contiguous()
    if value.dtype in (torch.float16, torch.bfloat16):
        return value
    fits = float(value.abs().max()) <= torch.finfo(torch.float16).max
    return value.to(torch.float16 if fits else torch.bfloat16)


@dataclass(frozen=True)
class LatentCache:
    """Mean and log-variance [C, H/8, W/8] of the VAE's posterior for each image, crop and flip; and its loss mask.

    `half` is the precision of the VAE, fp32 if None. An image that overflows in it, as some do with SDXL's own VAE, is
    encoded in fp32; that depends on the image alone, so the cache key need not say so.
    """

    folder: Path
    vae_hash: str
    half: torch.dtype | None = None

    def file(self, item: TrainItem) -> Path:
        """Return the file of the item's latents."""
        vae = self.vae_hash, str(self.half or torch.float32)
        options = ["mirrored"] * item.flipped + ["colours below transparency"] * _has_alpha_mask(item)
        return _cache_file(self.folder, "latents", CACHE_VERSION, item.sha256, str(item.placement), *vae, *options)

    def load(self, item: TrainItem) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance [C, H/8, W/8] in fp32. Raises JobError if the file is missing or damaged."""
        content = _read(self.file(item), item.path.name)
        return content["mean"].float(), content["logvar"].float()

    def store(self, item: TrainItem, mean: Tensor, logvar: Tensor) -> None:
        """Write mean and log-variance [C, H/8, W/8] of an item."""
        _write(self.file(item), mean=mean, logvar=logvar)

    def mask_file(self, item: TrainItem) -> Path:
        """Return the file of the item's mask, which is stored unflipped."""
        assert item.mask is not None
        return _cache_file(
            self.folder, "mask", CACHE_VERSION, item.mask.sha256, str(item.placement), str(item.mask.alpha)
        )

    def load_mask(self, item: TrainItem) -> Tensor:
        """Return the loss mask [1, H/8, W/8] in 0..1; ones for an item without a mask."""
        if item.mask is None:
            width, height = item.placement.bucket
            return torch.ones(1, height // VAE_FACTOR, width // VAE_FACTOR)
        mask = _read(self.mask_file(item), item.path.name)["mask"].float()
        return mask.flip(-1) if item.flipped else mask

    def fill(
        self,
        items: Sequence[TrainItem],
        vae: AutoencoderKL,
        *,
        device: torch.device = CPU,
        should_stop: Callable[[], bool],
        on_progress: Progress,
    ) -> int:
        """Encode the items that are not cached, write masks that are not cached, and return how many were encoded.

        Each file is decoded once, for all of its crops and its mask; a file of which nothing is missing is not read.
        The VAE is moved to `device` while it encodes; it is not moved if nothing is missing.

        Raises JobError with the image's name if the VAE returns NaN or the file has changed since it was scanned,
        ConfigError with all damaged images and masks, after nothing more was encoded, StopRequested after a stop
        request.
        """
        missing = [item for item in _unique(items, self.file) if not _is_complete(self.file(item))]
        masked = _unique((item for item in items if item.mask is not None), self.mask_file)
        masks = [item for item in masked if not _is_complete(self.mask_file(item))]
        damaged: list[str] = []
        done = 0
        with on_device(vae, device) if missing else nullcontext():
            for file in _uncached_files(missing, masks):
                if should_stop():
                    raise StopRequested
                try:
                    image, mask = file.decode()
                except InputError as error:
                    damaged.append(error.message)
                    continue
                if damaged:
                    continue  # the run cannot start: the rest is decoded only to report all damaged files at once
                for item in file.masks:
                    _write(self.mask_file(item), mask=latent_mask(mask, item))
                for item in file.latents:
                    if should_stop():
                        raise StopRequested
                    on_progress(done, len(missing))
                    self.store(item, *self._encode(vae, image, item))
                    done += 1
        if damaged:
            raise ConfigError(unreadable_errors(damaged))
        return len(missing)

    def _encode(self, vae: AutoencoderKL, image: Image.Image, item: TrainItem) -> tuple[Tensor, Tensor]:
        mean, logvar = encode_image(vae, image, item, self.half)
        if self.half is not None and not _finite(mean, logvar):
            mean, logvar = encode_image(vae, image, item)
        if not _finite(mean, logvar):
            raise JobError(
                f"The VAE produced NaN or Inf for {item.path.name!r}.",
                "Remove this image, or set vae to another VAE, for example madebyollin/sdxl-vae-fp16-fix.",
                code="latent_nan",
            )
        return mean, logvar


@dataclass(frozen=True)
class _UncachedFile:
    """An image or mask file, and the items whose latents and masks are to be computed from it."""

    path: Path
    sha256: str
    latents: list[TrainItem] = field(default_factory=list)
    masks: list[TrainItem] = field(default_factory=list)

    def decode(self) -> tuple[Image.Image, Image.Image]:
        """Return the image and its alpha channel as the mask, or a mask file twice.

        Raises InputError if it is damaged or has another size than its header says, after which it was placed in a
        bucket, JobError if it has changed since the dataset was read.
        """
        try:
            alpha = any(map(_has_alpha_mask, [*self.latents, *self.masks]))
            if not self.latents and not alpha:
                mask = decode_mask_file(self.path)
                return mask, mask
            picture = decode(self.path, with_alpha=alpha)
            if any(item.size != picture.size for item in self.latents):
                raise InputError(
                    f"The image {self.path.name!r} has {picture.size[0]} x {picture.size[1]} px, but its header says "
                    "otherwise.",
                    "Open and save it again, or remove it.",
                    code="unreadable",
                )
            return picture.image, alpha_mask(picture)
        finally:
            _check_unchanged(self.path, self.sha256)


def _uncached_files(latents: Iterable[TrainItem], masks: Iterable[TrainItem]) -> list[_UncachedFile]:
    """Return each file that must be decoded for these items' latents and masks, once."""
    files: dict[Path, _UncachedFile] = {}
    for item in masks:
        assert item.mask is not None
        source = item.mask
        files.setdefault(source.path, _UncachedFile(source.path, source.sha256)).masks.append(item)
    for item in latents:
        files.setdefault(item.path, _UncachedFile(item.path, item.sha256)).latents.append(item)
    return list(files.values())


def _finite(*values: Tensor) -> bool:
    return all(bool(value.isfinite().all()) for value in values)


def _has_alpha_mask(item: TrainItem) -> bool:
    """Return True if the alpha channel is the mask: transparent pixels then keep their colours instead of white."""
    return item.mask is not None and item.mask.alpha


def _check_unchanged(path: Path, sha256: str) -> None:
    """Raise JobError if a file has changed since the dataset was read."""
    try:
        if sha256_of(path) == sha256:
            return
        change = "was changed"
    except OSError:
        change = "was deleted"
    raise JobError(
        f"The image {path.name!r} {change} while the run was preparing.",
        "Start the run again: it will read the images as they are now.",
        code="image_changed",
    )


@torch.no_grad()
def encode_image(
    vae: AutoencoderKL, image: Image.Image, item: TrainItem, half: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Return mean and log-variance [C, H/8, W/8] in fp32 of an image, scaled, cropped and flipped as the item says.

    With `half`, convolutions run in that dtype under autocast; values that overflow there are not finite here.
    """
    pixels = torch.from_numpy(np.array(crop_to_bucket(image, item.placement, flipped=item.flipped))).permute(2, 0, 1)[
        None
    ]  # [H, W, 3] -> [1, 3, H, W]
    with torch.autocast(vae.device.type, half, enabled=half is not None):
        posterior = vae.encode(pixels.to(vae.device, vae.dtype) / 127.5 - 1).latent_dist
    return posterior.mean[0].float().cpu().contiguous(), posterior.logvar[0].float().cpu().contiguous()


def latent_mask(mask: Image.Image, item: TrainItem) -> Tensor:
    """Return a grey mask at latent size, cropped but not flipped: the mean of 8 x 8 pixels, [1, H/8, W/8] in 0..1."""
    pixels = torch.from_numpy(np.array(crop_to_bucket(mask, item.placement))).float()[None, None] / 255
    return torch.nn.functional.avg_pool2d(pixels, VAE_FACTOR)[0].contiguous()


@dataclass(frozen=True)
class TextCache:
    """Text embeddings of captions from frozen text encoders."""

    folder: Path
    encoders_hash: str
    clip_skip: int
    max_token_length: int = CHUNK_TOKENS

    def file(self, caption: str) -> Path:
        """Return the file of a caption's embeddings."""
        options = [str(int(self.max_token_length))] if self.max_token_length != CHUNK_TOKENS else []
        versions = CACHE_VERSION, TOKENIZATION_VERSION
        return _cache_file(self.folder, "text", *versions, caption, self.encoders_hash, str(self.clip_skip), *options)

    def load(self, captions: Sequence[str], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return embeddings [B, 77 n, D] and pooled ones [B, P]. Raises JobError if a file is missing or damaged."""
        found = [_read(self.file(caption), f"the caption {caption[:60]!r}") for caption in captions]
        hidden, pooled = (torch.stack([content[name].to(dtype) for content in found]) for name in ("hidden", "pooled"))
        return hidden, pooled

    def store(self, caption: str, hidden: Tensor, pooled: Tensor) -> None:
        """Write embeddings [77 n, D] and pooled embeddings [P] of a caption."""
        _write(self.file(caption), hidden=hidden, pooled=pooled)

    @torch.no_grad()
    def fill(
        self,
        captions: Iterable[str],
        text_encoders: Sequence[PreTrainedModel],
        tokenizers: Sequence[CLIPTokenizer],
        *,
        device: torch.device = CPU,
        should_stop: Callable[[], bool],
        on_progress: Progress,
    ) -> int:
        """Encode the captions that are not cached, and return how many. Raises StopRequested after a stop request.

        The encoders are moved to `device` and stay there; they are not moved if nothing is missing.
        """
        missing = [caption for caption in _unique(captions, self.file) if not _is_complete(self.file(caption))]
        encoders: Sequence[nn.Module] = text_encoders if missing else ()
        for encoder in encoders:
            encoder.to(device)
        for done, caption in enumerate(missing):
            if should_stop():
                raise StopRequested
            on_progress(done, len(missing))
            hidden, pooled = encode_text(text_encoders, tokenizers, [caption], self.clip_skip, self.max_token_length)
            self.store(caption, hidden[0], pooled[0])
        return len(missing)


def _cache_file(folder: Path, *parts: str) -> Path:
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return folder / key[:2] / f"{key}.safetensors"


def _unique(values: Iterable[T], file: Callable[[T], Path]) -> list[T]:
    return list({file(value): value for value in values}.values())


def _write(file: Path, **tensors: Tensor) -> None:
    write_bytes(file, save({name: to_16_bit(tensor) for name, tensor in tensors.items()}))


def _read(file: Path, source: str) -> dict[str, Tensor]:
    """Return the tensors of a file, memory-mapped. Raises JobError if it is missing or truncated."""
    try:
        content: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise JobError(
            f"The cache file of {source} is missing or damaged ({file}).",
            "Resume: missing cache files are encoded again, and the run continues from its last step.",
            code="cache_gone",
        ) from error
    return content


def _is_complete(file: Path) -> bool:
    """Return True if a cache file exists and has the length that its header says; its values are not read."""
    try:
        with safe_open(file, "pt"):
            return True
    except (OSError, SafetensorError):
        return False
