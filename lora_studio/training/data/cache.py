"""Latents and text embeddings on disk, named by all that they were made of: an edited image is encoded again, an
unchanged one never.

Numbers are kept in 16 bits, of which fp16 rounds by at most 2^-11, or 0.05 %, of a value. Training adds far more: at
the least noisy timestep of SDXL's schedule the noise is sqrt(0.00085), or 2.9 %, of what latents vary by. So runs in
fp32 keep 16 bits, too. Two runs of a job read the same numbers, whichever of them made the files: no run uses what an
encoder says before it was rounded.

Files are mapped into memory and read where they are used, and nothing of them is held: ten thousand images take no more
memory than ten.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedModel

from lora_studio.dataset.buckets import VAE_FACTOR
from lora_studio.dataset.images.decode import decode, file_sha256
from lora_studio.dataset.images.masks import read_mask
from lora_studio.errors import JobError, StopRequested
from lora_studio.files import write_bytes
from lora_studio.models.text_encoding import CHUNK_TOKENS, encode_text
from lora_studio.training.data.dataset import TrainItem

VERSION = "2"  # of what is stored: raise it when the same input gives another content
CPU = torch.device("cpu")
Progress = Callable[[int, int], None]


def weights_hash(*modules: nn.Module) -> str:
    """SHA-256 over the structure and the weights of modules, whatever file they came from."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(f"{module}\n".encode())  # activations, norms and strides have no weights
        for name, value in sorted(module.state_dict().items()):
            flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(memoryview(flat.numpy()))
    return digest.hexdigest()


def encoders_hash(text_encoders: Sequence[PreTrainedModel], tokenizers: Sequence[CLIPTokenizer]) -> str:
    """SHA-256 over all that turns a caption into embeddings: words and marks of the tokenizers, and the encoders."""
    digest = hashlib.sha256(weights_hash(*text_encoders).encode())
    for tokenizer in tokenizers:
        marks = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.model_max_length
        digest.update(json.dumps([marks, sorted(tokenizer.get_vocab().items())]).encode())
    return digest.hexdigest()


def to_16_bit(value: Tensor) -> Tensor:
    """A tensor in 16 bits, on the CPU: as it is if it has no more, else in fp16, or in bf16 if fp16 cannot hold it."""
    value = value.detach().cpu().contiguous()
    if value.dtype in (torch.float16, torch.bfloat16):
        return value
    fits = float(value.abs().max()) <= torch.finfo(torch.float16).max
    return value.to(torch.float16 if fits else torch.bfloat16)


@dataclass(frozen=True)
class LatentCache:
    """Mean and log-variance of the VAE's posterior for each view of an image, [C, H/8, W/8]; and its mask.

    `half` is the precision that the VAE computes in, fp32 if None. An image that overflows in it, as some do with
    SDXL's own VAE, is encoded in fp32: that depends on the image alone, so that a file's name still says what is in it.
    """

    folder: Path
    vae_hash: str
    half: torch.dtype | None = None

    def file(self, item: TrainItem) -> Path:
        """Where the latents of an image, cut and mirrored as the item says, are kept."""
        made = self.vae_hash, str(self.half or torch.float32)
        more = ["mirrored"] * item.flipped + ["colours below transparency"] * _has_alpha_mask(item)
        return _named(self.folder, "latents", VERSION, item.sha256, str(item.placement), *made, *more)

    def load(self, item: TrainItem) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of one image, in fp32. Raises JobError if they are gone."""
        content = _read(self.file(item), item.path.name)
        return content["mean"].float(), content["logvar"].float()

    def store(self, item: TrainItem, mean: Tensor, logvar: Tensor) -> None:
        """Keep what the VAE says of an image."""
        _write(self.file(item), mean=mean, logvar=logvar)

    def mask_file(self, item: TrainItem) -> Path:
        """Where the mask of an item that has one is kept; a mirrored item's is made of it."""
        assert item.mask is not None
        return _named(self.folder, "mask", VERSION, item.mask.sha256, str(item.placement), str(item.mask.alpha))

    def load_mask(self, item: TrainItem) -> Tensor:
        """The share of each latent that counts, [1, H/8, W/8] in 0..1: all of it for an item without a mask."""
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
        """Encode what is missing and return how many that were. Masks are made, too.

        The VAE is on `device` as long as it encodes, and not at all where nothing is missing.

        Raises JobError, naming the image, if the VAE answers with NaN or the file has changed since it was read first;
        InputError if an image cannot be read; StopRequested.
        """
        for item in items:
            if item.mask is not None and not _usable(self.mask_file(item)):
                mask = latent_mask(read_mask(item.mask), item)
                _check_unchanged(item.mask.path, item.mask.sha256)
                _write(self.mask_file(item), mask=mask)
        missing = [item for item in _distinct(items, self.file) if not _usable(self.file(item))]
        if not missing:
            return 0
        last: tuple[Path, Image.Image] | None = None  # the views of an image stand side by side
        home = vae.device
        vae.to(device)
        try:
            for done, item in enumerate(missing):
                if should_stop():
                    raise StopRequested
                on_progress(done, len(missing))
                if last is None or last[0] != item.path:
                    last = item.path, decode(item.path, with_alpha=_has_alpha_mask(item)).image
                    _check_unchanged(item.path, item.sha256)
                self.store(item, *self._encode(vae, last[1], item))
        finally:
            vae.to(home)
        return len(missing)

    def _encode(self, vae: AutoencoderKL, image: Image.Image, item: TrainItem) -> tuple[Tensor, Tensor]:
        mean, logvar = encode_image(vae, image, item, self.half)
        if self.half is not None and not _finite(mean, logvar):
            mean, logvar = encode_image(vae, image, item)
        if not _finite(mean, logvar):
            raise JobError(
                f"The VAE turns {item.path.name!r} into numbers that are not finite.",
                "Remove this image, or choose another VAE (`vae`, like madebyollin/sdxl-vae-fp16-fix).",
                code="latent_nan",
            )
        return mean, logvar


def _finite(*values: Tensor) -> bool:
    return all(bool(value.isfinite().all()) for value in values)


def _has_alpha_mask(item: TrainItem) -> bool:
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


def crop_image(image: Image.Image, item: TrainItem) -> Image.Image:
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
    vae: AutoencoderKL, image: Image.Image, item: TrainItem, half: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and log-variance [C, H/8, W/8] in fp32 of an image, scaled, cut and mirrored as the item says.

    With `half` the convolutions are computed in it, the sums in fp32; what overflows there is not finite here.
    """
    pixels = torch.from_numpy(np.array(crop_image(image, item))).permute(2, 0, 1)[None]  # [H, W, 3] -> [1, 3, H, W]
    with torch.autocast(vae.device.type, half, enabled=half is not None):
        posterior = vae.encode(pixels.to(vae.device, vae.dtype) / 127.5 - 1).latent_dist
    return posterior.mean[0].float().cpu().contiguous(), posterior.logvar[0].float().cpu().contiguous()


def latent_mask(mask: Image.Image, item: TrainItem) -> Tensor:
    """A grey mask at the item's place, unmirrored: the mean of each latent's 8 x 8 pixels, [1, H/8, W/8] in 0..1."""
    pixels = torch.from_numpy(np.array(crop_image(mask, replace(item, flipped=False)))).float()[None, None] / 255
    return torch.nn.functional.avg_pool2d(pixels, VAE_FACTOR)[0].contiguous()


@dataclass(frozen=True)
class TextCache:
    """Embeddings of captions by text encoders that are not trained."""

    folder: Path
    encoders_hash: str
    clip_skip: int
    max_token_length: int = CHUNK_TOKENS

    def file(self, caption: str) -> Path:
        """Where the embeddings of a caption are kept."""
        more = [str(int(self.max_token_length))] if self.max_token_length != CHUNK_TOKENS else []
        return _named(self.folder, "text", VERSION, caption, self.encoders_hash, str(self.clip_skip), *more)

    def load(self, captions: Sequence[str], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Embeddings [B, 77 n, D] and pooled embeddings [B, P] of captions. Raises JobError if they are gone."""
        found = [_read(self.file(caption), f"the caption {caption[:60]!r}") for caption in captions]
        hidden, pooled = (torch.stack([content[name].to(dtype) for content in found]) for name in ("hidden", "pooled"))
        return hidden, pooled

    def store(self, caption: str, hidden: Tensor, pooled: Tensor) -> None:
        """Keep embeddings [77 n, D] and pooled embeddings [P] of a caption."""
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
        """Encode what is missing and return how many that were. Raises StopRequested.

        The encoders go to `device` and stay there; they stay where they are if nothing is missing.
        """
        missing = [caption for caption in _distinct(captions, self.file) if not _usable(self.file(caption))]
        for encoder in text_encoders if missing else ():
            encoder.to(device)
        for done, caption in enumerate(missing):
            if should_stop():
                raise StopRequested
            on_progress(done, len(missing))
            hidden, pooled = encode_text(text_encoders, tokenizers, [caption], self.clip_skip, self.max_token_length)
            self.store(caption, hidden[0], pooled[0])
        return len(missing)


def _named(folder: Path, *parts: str) -> Path:
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return folder / key[:2] / f"{key}.safetensors"


def _distinct(values: Iterable, file: Callable[..., Path]) -> list:
    return list({file(value): value for value in values}.values())


def _write(file: Path, **tensors: Tensor) -> None:
    write_bytes(file, save({name: to_16_bit(tensor) for name, tensor in tensors.items()}))


def _read(file: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a file, mapped into memory. Raises JobError if it is gone or cut short."""
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
    """Whether a cache file is there and whole: as long as its header says. Its numbers are not read."""
    try:
        with safe_open(file, "pt"):
            return True
    except (OSError, SafetensorError):
        return False
