"""Load the parts of a base model: UNet, text encoders, VAE, tokenizers, noise schedule.

The model classes are fixed, and code that comes with a model is never run. Single files load offline: SDXL's
configuration and tokenizers ship in `sdxl_config/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel as UNet
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from lora_studio.dataset.images.decode import file_sha256
from lora_studio.errors import InputError
from lora_studio.hub import download
from lora_studio.hub_files import Transfer
from lora_studio.models.locate import (
    PARTS,
    SDXL_CONFIG,
    Progress,
    Source,
    fetch_base,
    find_vae,
    read_base_config,
    weights_file,
)
from lora_studio.models.weights_hash import folder_hash

LATENT_CHANNELS = 4
BytesProgress = Callable[[str, int, int], None]
"""Called with the name of a phase, the bytes so far, and all bytes."""
MAX_NAMES = 3  # missing tensors that an error names


@dataclass
class Base:
    """A loaded base model: frozen, in eval mode, on the CPU. UNet and text encoders in `dtype`, the VAE in fp32.

    The VAE stays in fp32 because SDXL's overflows in fp16.
    """

    name: str
    unet: UNet
    text_encoders: list[PreTrainedModel]
    tokenizers: list[CLIPTokenizer]
    vae: AutoencoderKL
    noise_scheduler: DDPMScheduler
    prediction_type: str
    zero_terminal_snr: bool
    native_resolution: int
    files: list[Path] = field(default_factory=list)

    @cached_property
    def hash(self) -> str:
        """The SHA-256 in hex of a single file, or of the names, sizes and window hashes of a folder's weight files."""
        if len(self.files) == 1:
            return file_sha256(self.files[0])
        return folder_hash(self.files)

    @property
    def latent_factor(self) -> int:
        """The pixels per latent, per side."""
        return int(2 ** (len(self.vae.config["block_out_channels"]) - 1))


def load_base(
    source: Source,
    *,
    dtype: torch.dtype,
    vae: str | None = None,
    prediction_type: str | None = None,
    zero_terminal_snr: bool | None = None,
    on_progress: Progress = lambda message: None,
    on_bytes: BytesProgress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Base:
    """Load a base onto the CPU, frozen. `vae` replaces its VAE: a Hub repository, folder or .safetensors file.

    `prediction_type` and `zero_terminal_snr` override what the base declares. `on_bytes` is called with the bytes that
    are downloaded and read so far, by phase. Raises InputError if a part is missing or damaged, and StopRequested if
    `should_stop` returns True during a download.
    """
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    source = fetch_base(
        source, on_progress=on_progress, report=_transfer_report(source, on_bytes), should_stop=should_stop
    )
    base_config = read_base_config(source)
    on_progress(f"Loading {source.name}")
    path = Path(source.location)
    try:
        read = partial(on_bytes, f"Loading {source.name}") if on_bytes else lambda done, total: None
        parts = _load_folder(path, dtype, read) if source.kind == "folder" else _load_file(path, dtype, read)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise InputError(
            f"The base model {source.name} cannot be loaded: {error}.",
            "It may be incomplete or not an SDXL model: download it again.",
            code="base_broken",
        ) from error
    unet, text_encoders, own_vae, tokenizers = parts
    used_vae = own_vae if vae is None else load_vae(vae)
    modules: list[nn.Module] = [unet, *text_encoders, used_vae]
    for module in modules:
        module.requires_grad_(False)
        module.eval()
    predicts = prediction_type or base_config.prediction_type
    zero_snr = base_config.zero_terminal_snr if zero_terminal_snr is None else zero_terminal_snr
    return Base(
        name=source.name,
        unet=unet,
        text_encoders=text_encoders,
        tokenizers=tokenizers,
        vae=used_vae,
        noise_scheduler=make_noise_scheduler(base_config.scheduler, predicts, zero_snr),
        prediction_type=predicts,
        zero_terminal_snr=zero_snr,
        native_resolution=base_config.native_resolution,
        files=[path] if source.kind == "file" else [weights_file(path / part) for part in PARTS],
    )


def _transfer_report(source: Source, on_bytes: BytesProgress | None) -> Callable[[Transfer], None] | None:
    """Return the function that reports the bytes of a download; None if no one asked for them."""
    if on_bytes is None:
        return None
    return lambda transfer: on_bytes(f"Downloading {source.location}", transfer.done, transfer.total)


Parts = tuple[UNet, list[PreTrainedModel], AutoencoderKL, list[CLIPTokenizer]]


def _load_folder(folder: Path, dtype: torch.dtype, read: Callable[[int, int], None]) -> Parts:
    """Load the parts of a diffusers folder; `read` is called with the bytes of the weights that are loaded, and all.

    Without `use_kernels=False`, transformers replaces layers by compiled kernels that it downloads from the Hub.
    """
    sizes = {part: _weights_size(folder / part) for part in PARTS}
    done = 0

    def load(model: Any, part: str, **options: Any) -> Any:
        half = weights_file(folder / part).name.endswith(".fp16.safetensors")
        loaded, info = model.from_pretrained(
            str(folder),
            subfolder=part,
            use_safetensors=True,
            local_files_only=True,
            variant="fp16" if half else None,
            output_loading_info=True,
            **options,
        )
        _check_complete(part, info["missing_keys"])
        nonlocal done
        done += sizes.get(part, 0)
        read(done, sum(sizes.values()))
        return loaded

    read(0, sum(sizes.values()))
    unet = load(UNet, "unet", torch_dtype=dtype)
    first = load(CLIPTextModel, "text_encoder", dtype=dtype, use_kernels=False)
    second = load(CLIPTextModelWithProjection, "text_encoder_2", dtype=dtype, use_kernels=False)
    vae = load(AutoencoderKL, "vae", torch_dtype=torch.float32)
    return unet, [first, second], vae, _load_tokenizers(folder)


def _check_complete(part: str, missing: Iterable[str]) -> None:
    """Raise ValueError with the names of the tensors that the weights of a part lack: they would start at random."""
    if names := sorted(missing):
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        raise ValueError(f"its {part} lacks {len(names)} tensors ({', '.join(names[:MAX_NAMES])}{more})")


def _weights_size(folder: Path) -> int:
    """Return the bytes of the safetensors files of one part."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _load_file(file: Path, dtype: torch.dtype, read: Callable[[int, int], None]) -> Parts:
    """Load the parts of a single file; `read` is called with its size before it is read."""
    read(0, file.stat().st_size)
    config = str(SDXL_CONFIG)
    vae = AutoencoderKL.from_single_file(
        str(file), config=config, subfolder="vae", torch_dtype=torch.float32, local_files_only=True
    )
    pipeline = StableDiffusionXLPipeline.from_single_file(
        str(file), config=config, vae=vae, torch_dtype=dtype, local_files_only=True
    )
    text_encoders = [pipeline.text_encoder, pipeline.text_encoder_2]
    for part, model in zip(("text_encoder", "text_encoder_2"), text_encoders, strict=True):
        # diffusers leaves what a file lacks on the meta device
        _check_complete(part, (name for name, weight in model.named_parameters() if weight.is_meta))
    return pipeline.unet, text_encoders, vae, _load_tokenizers(SDXL_CONFIG)


def _load_tokenizers(folder: Path) -> list[CLIPTokenizer]:
    return [CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")]


@contextmanager
def on_device(vae: AutoencoderKL, device: torch.device) -> Iterator[None]:
    """Move a VAE to `device` inside the block, and back after it."""
    home = vae.device
    if home == device:
        yield
        return
    module: nn.Module = vae  # diffusers' annotation of `to` has no `self`
    try:
        module.to(device)
        yield
    finally:
        module.to(home)


def load_vae(name: str) -> AutoencoderKL:
    """Load a VAE in fp32 from a Hub repository, a diffusers folder or a .safetensors file in the original layout.

    Raises InputError if it cannot be loaded or does not have SDXL's number of latent channels.
    """
    path = find_vae(name) or download(name, ["config.json", "diffusion_pytorch_model.safetensors"])
    try:
        vae: AutoencoderKL
        if path.is_dir():
            vae, info = AutoencoderKL.from_pretrained(
                str(path), use_safetensors=True, torch_dtype=torch.float32, output_loading_info=True
            )
            _check_complete("folder", info["missing_keys"])
        else:
            vae = AutoencoderKL.from_single_file(
                str(path), config=str(SDXL_CONFIG), subfolder="vae", torch_dtype=torch.float32, local_files_only=True
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"The VAE {name} cannot be loaded: {str(error).splitlines()[0]}.",
            "Give a Hub repository like madebyollin/sdxl-vae-fp16-fix or the folder of a VAE, or leave it out.",
            code="vae",
        ) from error
    if vae.config["latent_channels"] != LATENT_CHANNELS:
        raise InputError(
            f"The VAE {name} has {vae.config['latent_channels']} latent channels, but SDXL's has {LATENT_CHANNELS}.",
            "Give a VAE made for SDXL, or leave it out.",
            code="vae",
        )
    return vae


def make_noise_scheduler(config: dict[str, Any], prediction_type: str, zero_terminal_snr: bool) -> DDPMScheduler:
    """Return a base's noise schedule, its betas rescaled if its terminal SNR is zero (Lin et al. 2023).

    arXiv:2305.08891; values that `config` lacks are SDXL's.
    """
    scheduler: DDPMScheduler = DDPMScheduler(
        num_train_timesteps=config.get("num_train_timesteps", 1000),
        beta_start=config.get("beta_start", 0.00085),
        beta_end=config.get("beta_end", 0.012),
        beta_schedule=config.get("beta_schedule", "scaled_linear"),
        trained_betas=config.get("trained_betas"),
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_terminal_snr,
        steps_offset=1,
        clip_sample=False,
    )
    return scheduler
