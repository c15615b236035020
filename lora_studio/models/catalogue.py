"""The base models that the studio knows by name, as data in bases.toml.

Each fact there is from the model card on the Hub, or from Civitai's page of the model; what neither states is left out.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import TypeAdapter


@dataclass(frozen=True)
class TextEncoderShape:
    """Width, number of layers and feed-forward width of a text encoder."""

    width: int
    layers: int
    feed_forward: int


@dataclass(frozen=True)
class BaseShape:
    """Sizes of a base's networks.

    `widths` are the channels of the UNet's levels, `depths` the transformer layers of each attention block in them (0:
    no attention), `per_level` is the number of resnets per level.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    per_level: int
    text_encoders: tuple[TextEncoderShape, TextEncoderShape]


@dataclass(frozen=True)
class KnownBase:
    """A base model of the catalogue, or one that was described from its files.

    `repo` is its Hub repository, in diffusers layout unless `file` names a single-file checkpoint in it, or its path;
    it is empty for the embedded one, which ships with the studio. `tagger` is empty if none is known to suit it.
    Prompts are written as prefix, prompt, suffix; `prompt_style` says how. `negative_prompt` is that of the model card,
    without its words about content and style, which would work against a LoRA. `clip_skip` counts layers from the end.
    `sampler` is kohya's name; `steps` and `guidance` (CFG scale) are the lowest and highest value that the model card
    recommends. `download_gb` is the size of what is downloaded, in 10**9 bytes. None or empty: not stated.
    `shape` is known of a base whose files were read.
    """

    name: str
    repo: str
    family: Literal["anime", "realistic", "emoji", "unknown"]
    good_for: str
    why: str
    license: str
    license_url: str = ""
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    zero_terminal_snr: bool = False
    tagger: Literal["wd14", "blip", "demo", ""] = "wd14"
    resolution: int = 1024
    clip_skip: int | None = None
    prompt_style: str = ""
    prompt_prefix: str = ""
    prompt_suffix: str = ""
    negative_prompt: str = ""
    sampler: str = ""
    steps: tuple[int, int] | None = None
    guidance: tuple[float, float] | None = None
    download_gb: float | None = None
    file: str = ""
    page: str = ""
    aliases: tuple[str, ...] = field(default=(), repr=False)
    shape: BaseShape | None = None

    @property
    def is_embedded(self) -> bool:
        """True for the small base that ships with the studio."""
        return not self.repo

    def prompt(self, text: str) -> str:
        """Return a prompt with the quality tags that this base expects, unless it has them."""
        first, last = self.prompt_prefix.split(",")[0], self.prompt_suffix.split(",")[-1].strip()
        prefix = "" if text.startswith(first) else self.prompt_prefix
        suffix = "" if text.endswith(last) else self.prompt_suffix
        return f"{prefix}{text}{suffix}"

    def plain_prompt(self, text: str) -> str:
        """Return a prompt without the quality tags of this base."""
        return text.removeprefix(self.prompt_prefix).removesuffix(self.prompt_suffix)

    def recommended(self, usual_steps: int, usual_guidance: float) -> dict[str, Any]:
        """Return what the model card recommends, by the names of a sweep's settings, where it differs from the usual.

        Steps and CFG scale are the nearest within the recommended bounds.
        """
        found: dict[str, Any] = {"sampler": self.sampler} if self.sampler else {}
        if self.clip_skip is not None:
            found["clip_skip"] = self.clip_skip
        if self.steps is not None:
            found["steps"] = min(max(usual_steps, self.steps[0]), self.steps[1])
        if self.guidance is not None:
            found["guidance"] = min(max(usual_guidance, self.guidance[0]), self.guidance[1])
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return all fields except name, aliases and shape, for JSON."""
        return {name: value for name, value in asdict(self).items() if name not in ("name", "aliases", "shape")}


def _read_catalogue() -> list[KnownBase]:
    tables = tomllib.loads(Path(__file__).with_name("bases.toml").read_text("utf-8"))["base"]
    return TypeAdapter(list[KnownBase]).validate_python(tables)


_CATALOGUE = _read_catalogue()
BASES: Mapping[str, KnownBase] = MappingProxyType({base.name: base for base in _CATALOGUE})


def find_base(text: str) -> KnownBase | None:
    """Return the catalogue's entry for a name, alias or Hub repository, ignoring case; None for anything else."""
    wanted = text.strip().lower()
    for base in _CATALOGUE:
        if wanted and wanted in (base.name.lower(), base.repo.lower(), *base.aliases):
            return base
    return None
