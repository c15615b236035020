"""Base models: finding them, reading what they are, and loading their parts.

A base is a name from the catalogue, a file or folder in the studio's models folder, a Hub repository, a folder in
diffusers layout, or a single .safetensors file in the original layout. Only safetensors are read, the classes are
fixed here, and no code that comes with a model is ever run. Single files load without a network: SDXL's configuration
and tokenizers ship beside this module.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline
from diffusers import UNet2DConditionModel as UNet
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from lora_studio import guide
from lora_studio.dataset.images import file_sha256
from lora_studio.errors import InputError
from lora_studio.project import Home

SDXL_CONFIG = Path(__file__).parent / "sdxl_config"
PICKLED = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"})
PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")
# A tensor that every SDXL checkpoint in the original layout has: the projection of the second text encoder.
SDXL_KEY = "conditioner.embedders.1.model.text_projection"
SDXL_TEXT_KEY = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
# kohya's "legacy" hash reads this window of a file; programs still show its first 8 hex digits.
HASH_START, HASH_LENGTH = 0x100000, 0x10000

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """Where a base model lies, and what the catalogue knows about it (None: nothing)."""

    name: str
    kind: Literal["folder", "file", "repo"]
    location: str
    prediction_type: str | None = None
    zero_terminal_snr: bool | None = None


@dataclass(frozen=True)
class Facts:
    """What a base says about itself before its weights are read.

    `prediction_type` is "epsilon" or "v_prediction"; `stated` is False where it is only SDXL's default. The configs
    are those of the model classes.
    """

    prediction_type: str
    stated: bool
    zero_terminal_snr: bool
    scheduler: dict[str, Any]
    unet: dict[str, Any]
    text_encoders: tuple[dict[str, Any], dict[str, Any]]
    vae: dict[str, Any]

    @property
    def native_resolution(self) -> int:
        """Side in pixels of the square that the base was made for."""
        factor = 2 ** (len(self.vae["block_out_channels"]) - 1)
        return int(self.unet["sample_size"]) * int(factor)


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
        """SHA-256 in hex: of a single file, its content; of a folder, of its parts' names, sizes and samples."""
        if len(self.files) == 1:
            return file_sha256(self.files[0])
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.parent.name}/{file.name} {file.stat().st_size} {window_hash(file)}\n".encode())
        return digest.hexdigest()

    @property
    def latent_factor(self) -> int:
        """Pixels a latent along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def sampler(self) -> EulerDiscreteScheduler:
        """Euler over this base's noise schedule; with zero terminal SNR it starts at the last timestep."""
        spacing = "trailing" if self.zero_terminal_snr else "leading"
        return EulerDiscreteScheduler.from_config(self.noise_scheduler.config, timestep_spacing=spacing)


def resolve(name: str, home: Home) -> Source:
    """Find the base model called `name`; nothing is read but directory entries.

    Raises InputError if there is none, or if it is a pickle, which could run any program when it is opened.
    """
    name = name.strip()
    if not name:
        raise InputError("No base model is given.", f"Choose one of {', '.join(guide.BASES)}.", code="base_missing")
    if (entry := guide.find_base(name)) is not None:
        return _from_catalogue(entry)
    for path in (home.models / name, home.models / f"{name}.safetensors", Path(name).expanduser()):
        if path.exists():
            return _from_path(name, path)
    if Path(name).suffix.lower() in PICKLED:
        raise _pickled(name)
    if HUB_NAME.fullmatch(name) and ".." not in name and not name.endswith((".safetensors", ".git")):
        return Source(name, "repo", name)
    raise InputError(
        f"There is no base model {name!r}.",
        f"Give one of {', '.join(guide.BASES)}, a Hub repository like stabilityai/stable-diffusion-xl-base-1.0, or the "
        f"path of a diffusers folder or a .safetensors file (such files may lie in {home.models}).",
        code="base_missing",
    )


def _from_catalogue(entry: guide.BaseModel) -> Source:
    if entry.repo:
        return Source(entry.name, "repo", entry.repo, entry.prediction_type, entry.zero_terminal_snr)
    from lora_studio.demo import base_path

    return Source(entry.name, "folder", str(base_path()), entry.prediction_type, entry.zero_terminal_snr)


def _from_path(name: str, path: Path) -> Source:
    path = path.resolve()
    if path.is_dir():
        if not (path / "unet" / "config.json").is_file():
            raise InputError(
                f"{path} is no model in diffusers layout: it has no unet/config.json.",
                "Give the folder that holds model_index.json, or a .safetensors file.",
                code="base_layout",
            )
        return Source(name, "folder", str(path))
    if path.suffix.lower() in PICKLED:
        raise _pickled(path.name)
    if path.suffix.lower() != ".safetensors":
        raise InputError(
            f"{path.name} is no .safetensors file.",
            "Give a .safetensors file or a diffusers folder.",
            code="base_format",
        )
    return Source(name, "file", str(path))


def _pickled(name: str) -> InputError:
    return InputError(
        f"{name} is a pickled checkpoint, which can run any program when it is opened.",
        "Use the .safetensors version of this model; most download pages offer one.",
        code="pickle",
    )


def fetch(source: Source, *, on_progress: Progress = lambda message: None) -> Source:
    """Download a Hub repository, or take it from the cache; a folder or file comes back as it is.

    Raises InputError if it cannot be had or is not made of safetensors.
    """
    if source.kind != "repo":
        return source
    on_progress(f"Fetching {source.location}")
    folder = _download(source.location, ["*.json", "*/*.json", "*.txt", "*/*.txt", "*/merges.txt"])
    if (folder / "unet" / "config.json").is_file():
        folder = _download(source.location, ["*.json", "*/*.json", "*/*.txt", *_weight_patterns(source.location)])
        return Source(source.name, "folder", str(folder), source.prediction_type, source.zero_terminal_snr)
    files = [name for name in _repo_files(source.location) if "/" not in name and name.endswith(".safetensors")]
    if len(files) != 1:
        raise InputError(
            f"{source.location} is no SDXL model: it has no unet folder and {len(files)} .safetensors files.",
            "Download the file that you want and give its path.",
            code="base_layout",
        )
    file = _download(source.location, files) / files[0]
    return Source(source.name, "file", str(file), source.prediction_type, source.zero_terminal_snr)


def _download(repo: str, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns))
    except RepositoryNotFoundError as error:
        raise InputError(
            f"The Hub has no repository {repo}, or it asks for a login.",
            "Check the name; for a gated model accept its terms on its page and run `hf auth login`.",
            code="base_missing",
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{repo} could not be downloaded: {str(error).splitlines()[0] if str(error) else type(error).__name__}.",
            "Check the network, or download the .safetensors file and give its path.",
            code="base_download",
        ) from error


def _repo_files(repo: str) -> list[str]:
    from huggingface_hub import list_repo_files

    try:
        return list(list_repo_files(repo))
    except (HfHubHTTPError, OSError):
        folder = _download(repo, ["*.safetensors"])
        return [str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")]


def _weight_patterns(repo: str) -> list[str]:
    """The weights to download: of each part the fp16 ones where there are any, which are half the size."""
    files = _repo_files(repo)
    patterns = []
    for part in PARTS:
        half = any(name.startswith(f"{part}/") and name.endswith(".fp16.safetensors") for name in files)
        patterns.append(f"{part}/*.fp16.safetensors" if half else f"{part}/*.safetensors")
    return patterns


def read_facts(source: Source) -> Facts:
    """What a fetched base says about itself, without reading its weights.

    A single file's `v_pred` and `ztsnr` tensors and its metadata count before the catalogue; a folder's scheduler
    configuration too. Raises InputError if it is broken or no SDXL model.
    """
    if source.kind == "repo":
        raise ValueError("fetch the source first")
    path = Path(source.location)
    folder = path if source.kind == "folder" else SDXL_CONFIG
    scheduler = _read_config(folder / "scheduler" / "scheduler_config.json")
    configs = {part: _read_config(folder / part / "config.json") for part in PARTS}
    if "projection_class_embeddings_input_dim" not in configs["unet"]:
        raise _not_sdxl(path.name)
    if source.kind == "file":
        v_prediction, zero_snr = _read_markers(path)
    else:
        v_prediction = scheduler.get("prediction_type") == "v_prediction"
        zero_snr = bool(scheduler.get("rescale_betas_zero_snr"))
    stated = v_prediction or source.prediction_type is not None or source.kind == "folder"
    return Facts(
        prediction_type="v_prediction" if v_prediction else source.prediction_type or "epsilon",
        stated=stated,
        zero_terminal_snr=zero_snr or bool(source.zero_terminal_snr),
        scheduler=scheduler,
        unet=configs["unet"],
        text_encoders=(configs["text_encoder"], configs["text_encoder_2"]),
        vae=configs["vae"],
    )


def _read_config(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file.parent.name}/{file.name} of the base model cannot be read: {error}.",
            f"Download the model anew; {file.parent.parent} is not complete.",
            code="base_broken",
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{file} holds no object.", "Download the model anew.", code="base_broken")
    return value


def _read_markers(file: Path) -> tuple[bool, bool]:
    """v-prediction and zero terminal SNR as a single file declares them; raises InputError if it is not SDXL."""
    try:
        with safe_open(file, framework="pt") as content:
            keys, metadata = set(content.keys()), content.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{file.name} cannot be read: {error}.", "It may be incomplete: download it anew.", code="base_broken"
        ) from error
    if SDXL_TEXT_KEY not in keys and SDXL_KEY not in keys:
        raise _not_sdxl(file.name, keys)
    said = metadata.get("modelspec.prediction_type", "")
    return "v_pred" in keys or said in ("v", "v_prediction"), "ztsnr" in keys


def _not_sdxl(name: str, keys: Iterable[str] = ()) -> InputError:
    if any("lora_down" in key or "lora_A" in key for key in keys):
        return InputError(
            f"{name} is a LoRA, not a base model.", "Choose the SDXL model it belongs to.", code="base_lora"
        )
    return InputError(
        f"{name} is no SDXL model.",
        "Choose a checkpoint made from SDXL (SD 1.5 and others do not fit).",
        code="base_kind",
    )


def load_base(
    source: Source,
    *,
    dtype: torch.dtype,
    vae: str | None = None,
    prediction_type: str | None = None,
    on_progress: Progress = lambda message: None,
) -> Base:
    """Load a base onto the CPU, frozen. `vae` is another VAE: Hub repository, folder or .safetensors file.

    `prediction_type` overrides what the base says. Raises InputError if something is missing or broken.
    """
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    source = fetch(source, on_progress=on_progress)
    facts = read_facts(source)
    on_progress(f"Loading {source.name}")
    path = Path(source.location)
    try:
        parts = _load_folder(path, dtype) if source.kind == "folder" else _load_file(path, dtype)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise InputError(
            f"The base model {source.name} cannot be loaded: {error}.",
            "It may be incomplete or no SDXL model: download it anew.",
            code="base_broken",
        ) from error
    unet, text_encoders, own_vae, tokenizers = parts
    used_vae = own_vae if vae is None else load_vae(vae)
    for module in (unet, *text_encoders, used_vae):
        module.requires_grad_(False)
        module.eval()
    predicts = prediction_type or facts.prediction_type
    return Base(
        name=source.name,
        unet=unet,
        text_encoders=text_encoders,
        tokenizers=tokenizers,
        vae=used_vae,
        noise_scheduler=make_noise_scheduler(facts.scheduler, predicts, facts.zero_terminal_snr),
        prediction_type=predicts,
        zero_terminal_snr=facts.zero_terminal_snr,
        native_resolution=facts.native_resolution,
        files=[path] if source.kind == "file" else [_weights(path / part) for part in PARTS],
    )


Parts = tuple[UNet, list[PreTrainedModel], AutoencoderKL, list[CLIPTokenizer]]


def _load_folder(folder: Path, dtype: torch.dtype) -> Parts:
    def options(part: str) -> dict[str, Any]:
        half = _weights(folder / part).name.endswith(".fp16.safetensors")
        return {
            "pretrained_model_name_or_path": str(folder),
            "subfolder": part,
            "use_safetensors": True,
            "local_files_only": True,
            "variant": "fp16" if half else None,
        }

    unet = UNet.from_pretrained(**options("unet"), torch_dtype=dtype)
    first = CLIPTextModel.from_pretrained(**options("text_encoder"), dtype=dtype)
    second = CLIPTextModelWithProjection.from_pretrained(**options("text_encoder_2"), dtype=dtype)
    vae = AutoencoderKL.from_pretrained(**options("vae"), torch_dtype=torch.float32)
    return unet, [first, second], vae, _load_tokenizers(folder)


def _load_file(file: Path, dtype: torch.dtype) -> Parts:
    config = str(SDXL_CONFIG)
    vae = AutoencoderKL.from_single_file(
        str(file), config=config, subfolder="vae", torch_dtype=torch.float32, local_files_only=True
    )
    pipeline = StableDiffusionXLPipeline.from_single_file(
        str(file), config=config, vae=vae, torch_dtype=dtype, local_files_only=True
    )
    return pipeline.unet, [pipeline.text_encoder, pipeline.text_encoder_2], vae, _load_tokenizers(SDXL_CONFIG)


def _load_tokenizers(folder: Path) -> list[CLIPTokenizer]:
    return [CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")]


def _weights(folder: Path) -> Path:
    """The safetensors file of one part, or the index of its shards; the fp16 one only if it is alone."""
    names = ("model", "diffusion_pytorch_model")
    for suffix in (".safetensors", ".safetensors.index.json", ".fp16.safetensors"):
        for name in names:
            if (file := folder / f"{name}{suffix}").is_file():
                return file
    raise InputError(
        f"{folder} holds no .safetensors weights.",
        "Use a model that has them (pickled .bin files are not opened), or download it anew.",
        code="base_broken",
    )


def load_vae(name: str) -> AutoencoderKL:
    """A VAE of its own in fp32: a Hub repository, a diffusers folder, or a .safetensors file in the original layout.

    Raises InputError if it cannot be loaded.
    """
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
            return AutoencoderKL.from_pretrained(str(folder), use_safetensors=True, torch_dtype=torch.float32)
        if path.suffix.lower() in PICKLED:
            raise _pickled(path.name)
        if path.is_file():
            return AutoencoderKL.from_single_file(
                str(path), config=str(SDXL_CONFIG), subfolder="vae", torch_dtype=torch.float32, local_files_only=True
            )
        if HUB_NAME.fullmatch(name) and ".." not in name:
            folder = Path(hf_hub_download(name, "config.json")).parent
            hf_hub_download(name, "diffusion_pytorch_model.safetensors")
            return AutoencoderKL.from_pretrained(str(folder), use_safetensors=True, torch_dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"The VAE {name} cannot be loaded: {str(error).splitlines()[0]}.",
            "Give a Hub repository like madebyollin/sdxl-vae-fp16-fix or the folder of a VAE, or leave it out.",
            code="vae",
        ) from error
    raise InputError(f"There is no VAE {name!r}.", "Give a folder or a Hub repository, or leave it out.", code="vae")


def make_noise_scheduler(config: dict[str, Any], prediction_type: str, zero_terminal_snr: bool) -> DDPMScheduler:
    """The forward process of a base: its betas over its timesteps; rescaled if its terminal SNR is zero."""
    return DDPMScheduler(
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


def window_hash(file: Path) -> str:
    """SHA-256 in hex of 64 KiB from 1 MiB on: kohya's "legacy" hash is its first 8 digits."""
    with file.open("rb") as stream:
        stream.seek(HASH_START)
        return hashlib.sha256(stream.read(HASH_LENGTH)).hexdigest()
