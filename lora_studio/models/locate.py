"""Find a base model and read its configuration, before any weight is loaded.

A base is a name from the catalogue, a file or folder in the studio's models folder, a Hub repository, a folder in
diffusers layout, or a single .safetensors file in the original layout. Only safetensors weights are read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from lora_studio.errors import InputError
from lora_studio.hub import PICKLE_SUFFIXES, cached_folder, download, is_repo_name
from lora_studio.hub_files import Transfer
from lora_studio.models.architectures import is_adapter, kind_of_folder, kind_of_tensors, read_header
from lora_studio.models.catalogue import BASES, KnownBase, find_base
from lora_studio.workspace.project import Home

SDXL_CONFIG = Path(__file__).parent / "sdxl_config"
PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")
# Tensors of the second text encoder; every SDXL checkpoint in the original layout has at least one of them.
SDXL_KEY = "conditioner.embedders.1.model.text_projection"
SDXL_TEXT_KEY = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"
# Tensors by which ComfyUI recognises bases with the noise schedule of EDM (Karras et al. 2022, arXiv:2206.00364).
EDM_KEYS = frozenset({"edm_mean", "edm_std", "edm_vpred.sigma_max"})
# What is downloaded of a repository before it is known what it is.
CONFIG_FILES = ("*.json", "*/*.json", "*.txt", "*/*.txt", "*/merges.txt")
TEXT_SECONDS = 5.0  # between two texts about a download's progress
# Offset and length in bytes of the part of a file that kohya's "legacy" hash covers; UIs show its first 8 hex digits.
HASH_START, HASH_LENGTH = 0x100000, 0x10000

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """Location of a base model, and what the catalogue states about it (None: nothing)."""

    name: str
    kind: Literal["folder", "file", "repo"]
    location: str
    prediction_type: str | None = None
    zero_terminal_snr: bool | None = None

    def at(self, kind: Literal["folder", "file"], path: Path) -> Source:
        """Return the same base at a local path."""
        return replace(self, kind=kind, location=str(path))


@dataclass(frozen=True)
class BaseConfig:
    """Configuration of a base model, read without its weights.

    `prediction_type` is "epsilon" or "v_prediction"; `prediction_type_stated` is False if neither the base nor the
    catalogue states it, so that SDXL's default is assumed. `scheduler`, `unet`, `text_encoders` and `vae` are the
    configs of the diffusers and transformers classes.
    """

    prediction_type: str
    prediction_type_stated: bool
    zero_terminal_snr: bool
    scheduler: dict[str, Any]
    unet: dict[str, Any]
    text_encoders: tuple[dict[str, Any], dict[str, Any]]
    vae: dict[str, Any]

    @property
    def native_resolution(self) -> int:
        """The side in pixels of the square images that the base was trained for."""
        factor = 2 ** (len(self.vae["block_out_channels"]) - 1)
        return int(self.unet["sample_size"]) * int(factor)


def resolve_base(name: str, home: Home) -> Source:
    """Return the source of the base model called `name`, without opening any file.

    Raises InputError if there is none, or if it is a pickle, which can run arbitrary code when it is opened.
    """
    name = name.strip()
    if not name:
        raise InputError("No base model is given.", f"Choose one of {', '.join(BASES)}.", code="base_missing")
    if (entry := find_base(name)) is not None:
        return _from_catalogue(entry)
    for path in (home.models / name, home.models / f"{name}.safetensors", Path(name).expanduser()):
        if path.exists():
            return _from_path(name, path)
    if Path(name).suffix.lower() in PICKLE_SUFFIXES:
        raise pickle_error(name)
    if is_repo_name(name) and not name.endswith(".safetensors"):
        return Source(name, "repo", name)
    raise InputError(
        f"There is no base model {name!r}.",
        f"Give one of {', '.join(BASES)}, a Hub repository like stabilityai/stable-diffusion-xl-base-1.0, or the "
        f"path of a diffusers folder or a .safetensors file. Files in {home.models} are found by name.",
        code="base_missing",
    )


def _from_catalogue(entry: KnownBase) -> Source:
    if entry.repo:
        return Source(entry.name, "repo", entry.repo, entry.prediction_type, entry.zero_terminal_snr)
    from lora_studio.demo import base_path

    return Source(entry.name, "folder", str(base_path()), entry.prediction_type, entry.zero_terminal_snr)


def _from_path(name: str, path: Path) -> Source:
    path = path.resolve()
    if path.is_dir():
        if kind := kind_of_folder(path):
            raise not_sdxl_error(path.name, kind)
        if not (path / "unet" / "config.json").is_file():
            raise InputError(
                f"{path} is not a model in diffusers layout: it has no unet/config.json.",
                "Give the folder that contains model_index.json, or a .safetensors file.",
                code="base_layout",
            )
        return Source(name, "folder", str(path))
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise pickle_error(path.name)
    if path.suffix.lower() != ".safetensors":
        raise InputError(
            f"{path.name} is not a .safetensors file.",
            "Give a .safetensors file or a diffusers folder.",
            code="base_format",
        )
    return Source(name, "file", str(path))


def find_vae(name: str) -> Path | None:
    """Return the folder or .safetensors file of a VAE, None for a Hub repository; raise InputError if it is neither."""
    path = Path(name).expanduser()
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise pickle_error(path.name)
    if path.is_dir() and name.strip():
        folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
        raise InputError(
            f"vae: {path} is not a VAE folder: it lacks config.json or a .safetensors file.",
            "Give the folder of a VAE in diffusers layout (pickled .bin files are not opened), or leave it out.",
            code="vae",
        )
    if path.is_file() and path.suffix.lower() == ".safetensors":
        return path
    if is_repo_name(name) and not path.exists():
        return None
    raise InputError(
        f"vae: there is no VAE {name!r}.",
        "Give a folder, a .safetensors file or a Hub repository like madebyollin/sdxl-vae-fp16-fix, or leave it out.",
        code="vae",
    )


def pickle_error(name: str) -> InputError:
    """Return the error for a pickled checkpoint."""
    return InputError(
        f"{name} is a pickled checkpoint, which can run arbitrary code when it is opened.",
        "Use the .safetensors version of this model; most download pages offer one.",
        code="pickle",
    )


def fetch_base(
    source: Source,
    *,
    on_progress: Progress = lambda message: None,
    report: Callable[[Transfer], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Source:
    """Download a Hub repository unless it is cached, and return its local source; return other sources as they are.

    `report` is called with the bytes of the weights so far; without it, `on_progress` is, with a text. Raises
    InputError if the download fails or the repository has no single base in safetensors format, and what `download`
    raises.
    """
    if source.kind != "repo":
        return source
    repo = source.location
    on_progress(f"Fetching {repo}")
    folder = download(repo, CONFIG_FILES)
    if kind := kind_of_folder(folder):
        raise not_sdxl_error(repo, kind)
    report = report or _TextReport(repo, on_progress)
    if (folder / "unet" / "config.json").is_file():
        patterns = [*CONFIG_FILES, *_weight_patterns(repo)]
        folder = download(repo, patterns, report=report, should_stop=should_stop)
        return source.at("folder", folder)
    files = _single_files(repo, _repo_files(repo))
    if len(files) != 1:
        raise InputError(
            f"{repo} is not an SDXL base: it has no unet folder and {len(files)} .safetensors files.",
            "Download the file that you want and give its path.",
            code="base_layout",
        )
    return source.at("file", download(repo, files, report=report, should_stop=should_stop) / files[0])


def cached_base(source: Source) -> Source | None:
    """Return the local source of a Hub repository that was downloaded completely; None for one that was not.

    Other sources are returned as they are.
    """
    if source.kind != "repo":
        return source
    folder = cached_folder(source.location)
    if folder is None:
        return None
    if (folder / "unet" / "config.json").is_file():
        is_complete = all(any((folder / part).glob("*.safetensors")) for part in PARTS)
        return source.at("folder", folder) if is_complete else None
    files = _single_files(source.location, [path.name for path in folder.iterdir()])
    return source.at("file", folder / files[0]) if len(files) == 1 else None


class _TextReport:
    """Reports the bytes of a download as text, every few seconds."""

    def __init__(self, repo: str, on_progress: Progress) -> None:
        self.repo = repo
        self.on_progress = on_progress
        self.reported = time.monotonic()

    def __call__(self, transfer: Transfer) -> None:
        if transfer.total and time.monotonic() - self.reported > TEXT_SECONDS:
            self.reported = time.monotonic()
            share = transfer.done / transfer.total
            self.on_progress(f"Fetching {self.repo}: {share:.0%} of {transfer.total / 1e9:.1f} GB")


def _single_files(repo: str, names: list[str]) -> list[str]:
    """Return the checkpoints of a repository: the one that the catalogue names if it is there, else all."""
    known = find_base(repo)
    files = [name for name in names if "/" not in name and name.endswith(".safetensors")]
    return [known.file] if known is not None and known.file in files else files


def _repo_files(repo: str) -> list[str]:
    try:
        return list(HfApi().list_repo_files(repo))
    except (HfHubHTTPError, OSError):
        folder = download(repo, ["*.safetensors"])
        return [str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")]


def _weight_patterns(repo: str) -> list[str]:
    """Return glob patterns of the weights to download: per part, the fp16 files (half the size) if it has any."""
    files = _repo_files(repo)
    patterns = []
    for part in PARTS:
        half = any(name.startswith(f"{part}/") and name.endswith(".fp16.safetensors") for name in files)
        patterns.append(f"{part}/*.fp16.safetensors" if half else f"{part}/*.safetensors")
    return patterns


def read_base_config(source: Source) -> BaseConfig:
    """Read the configuration of a local base, without its weights.

    Prediction type and zero terminal SNR of a single file come from its `v_pred` and `ztsnr` tensors, else from its
    metadata, else from the catalogue; those of a folder from its scheduler config. Raises InputError if the base is
    damaged or not SDXL.
    """
    if source.kind == "repo":
        raise ValueError("fetch the source first")
    path = Path(source.location)
    folder = path if source.kind == "folder" else SDXL_CONFIG
    if "projection_class_embeddings_input_dim" not in _read_config(folder / "unet" / "config.json"):
        raise not_sdxl_error(path.name)
    scheduler = _read_config(folder / "scheduler" / "scheduler_config.json")
    configs = {part: _read_config(folder / part / "config.json") for part in PARTS}
    stated_type: str | None
    if source.kind == "file":
        stated_type, zero_snr = _read_markers(path)
    else:
        stated_type = "v_prediction" if scheduler.get("prediction_type") == "v_prediction" else None
        zero_snr = bool(scheduler.get("rescale_betas_zero_snr"))
    return BaseConfig(
        prediction_type=stated_type or source.prediction_type or "epsilon",
        prediction_type_stated=source.kind == "folder" or (stated_type or source.prediction_type) is not None,
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
            f"Download the model again; {file.parent.parent} is incomplete.",
            code="base_broken",
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{file} is not a JSON object.", "Download the model again.", code="base_broken")
    return value


def _read_markers(file: Path) -> tuple[str | None, bool]:
    """Return prediction type (None: not stated) and zero terminal SNR as a single file declares them.

    Raises InputError if it is not SDXL or has another noise schedule.
    """
    try:
        keys, metadata = read_header(file)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file.name} cannot be read: {error}.", "It may be incomplete: download it again.", code="base_broken"
        ) from error
    if SDXL_TEXT_KEY not in keys and SDXL_KEY not in keys:
        if is_adapter(keys):
            raise InputError(
                f"{file.name} is a LoRA, not a base model.",
                "Choose the SDXL model that it was trained on.",
                code="base_lora",
            )
        raise not_sdxl_error(file.name, kind_of_tensors(keys))
    if keys & EDM_KEYS:
        raise InputError(
            f"{file.name} was trained with the EDM noise schedule (like CosXL and Playground 2.5), not SDXL's.",
            "Choose a base with SDXL's noise schedule.",
            code="base_schedule",
        )
    zero_snr = "ztsnr" in keys or metadata.get("ss_zero_terminal_snr", "").lower() == "true"
    return "v_prediction" if "v_pred" in keys else _metadata_prediction_type(metadata), zero_snr


def _metadata_prediction_type(metadata: dict[str, str]) -> str | None:
    """Return the prediction type from the metadata keys of modelspec, ComfyUI or kohya; None if none states it."""
    values = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "eps": "epsilon"}
    for name in ("modelspec.prediction_type", "modelspec.predict_key"):
        if (value := values.get(metadata.get(name, "").lower())) is not None:
            return value
    return {"true": "v_prediction", "false": "epsilon"}.get(metadata.get("ss_v_parameterization", "").lower())


def not_sdxl_error(name: str, kind: str = "") -> InputError:
    """Return the error for a model of another architecture; `kind` is what it is, with its article, if known."""
    return InputError(
        f"{name} is {f'{kind}, ' if kind else ''}not an SDXL checkpoint.",
        "Choose a checkpoint based on SDXL; SD 1.5, FLUX and other architectures do not work.",
        code="base_kind",
    )


def weights_file(folder: Path) -> Path:
    """Return the safetensors file of one part, or the index of its shards; an fp16 file only if it is the only one."""
    names = ("model", "diffusion_pytorch_model")
    for suffix in (".safetensors", ".safetensors.index.json", ".fp16.safetensors"):
        for name in names:
            if (file := folder / f"{name}{suffix}").is_file():
                return file
    raise InputError(
        f"{folder} has no .safetensors weights.",
        "Use a model that has them (pickled .bin files are not opened), or download it again.",
        code="base_broken",
    )
