"""Describe a base model for planning, from the catalogue or from its own files, before any weight is read."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path

from lora_studio.errors import InputError
from lora_studio.hub import download
from lora_studio.models.architectures import kind_of_folder
from lora_studio.models.catalogue import BaseShape, KnownBase, TextEncoderShape, find_base
from lora_studio.models.locate import BaseConfig, Source, not_sdxl_error, read_base_config, resolve_base
from lora_studio.workspace.project import Home

REMEMBERED_SECONDS = 300  # how long the answer about a repository is used again


def describe_base(name: str, home: Home) -> KnownBase | None:
    """Return a base's entry in the catalogue, else one with what its files state.

    Of a Hub repository only the configuration is downloaded; None if that is not possible now, or if it has none.
    Raises InputError if there is no such base, or if it is damaged or not an SDXL.
    """
    if (entry := find_base(name)) is not None:
        return entry
    source = resolve_base(name, home)
    if source.kind == "repo":
        return _describe_repo(source.location, int(time.monotonic() // REMEMBERED_SECONDS))
    return _entry(name, source, read_base_config(source))


@lru_cache(maxsize=32)
def _describe_repo(repo: str, _period: int) -> KnownBase | None:
    try:
        folder = download(repo, ["model_index.json", "*/config.json", "scheduler/scheduler_config.json"])
    except InputError as error:
        if error.code == "hub_missing":
            raise
        return None
    if kind := kind_of_folder(folder):
        raise not_sdxl_error(repo, kind)
    if not (folder / "unet" / "config.json").is_file():
        return None
    source = Source(repo, "folder", str(folder))
    return _entry(repo, source, read_base_config(source))


def _entry(name: str, source: Source, config: BaseConfig) -> KnownBase:
    predicts_v = config.prediction_type == "v_prediction"
    predicts = "v" if predicts_v else "epsilon"
    facts = f"predicts {predicts}{' with zero terminal SNR' if config.zero_terminal_snr else ''}"
    if not config.prediction_type_stated:
        facts = f"is taken to predict {predicts}, since the file does not state it"
    return KnownBase(
        name=name,
        repo=source.location,
        family="unknown",
        good_for="",
        why=f"{Path(name).name} is an SDXL that {facts}, for images of {config.native_resolution} px.",
        license="",
        prediction_type="v_prediction" if predicts_v else "epsilon",
        zero_terminal_snr=config.zero_terminal_snr,
        tagger="",
        resolution=config.native_resolution,
        shape=_shape(config),
    )


def _shape(config: BaseConfig) -> BaseShape:
    """Return the sizes of a base's networks from its configs."""
    unet = config.unet
    widths = tuple(unet["block_out_channels"])
    depths = unet.get("transformer_layers_per_block", 1)
    depths = [depths] * len(widths) if isinstance(depths, int) else depths
    first, second = (
        TextEncoderShape(text["hidden_size"], text["num_hidden_layers"], text["intermediate_size"])
        for text in config.text_encoders
    )
    return BaseShape(
        widths=widths,
        depths=tuple(
            depth if "CrossAttn" in block else 0 for depth, block in zip(depths, unet["down_block_types"], strict=True)
        ),
        per_level=unet["layers_per_block"],
        text_encoders=(first, second),
    )
