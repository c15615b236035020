"""Read single tensors of a base model, by diffusers' names, without loading the model.

Single files have Stability's names for the UNet and OpenCLIP's for the second text encoder, whose query, key and value
projections are one tensor; folders in diffusers layout have each part's own names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora_studio.errors import InputError
from lora_studio.models.locate import Source, weights_file

PARTS = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}
_UNET, _FIRST = "model.diffusion_model.", "conditioner.embedders.0.transformer."
_SECOND = re.compile(r"conditioner\.embedders\.1\.model\.(?:transformer\.resblocks\.(\d+)\.)?(.+)")
_OPEN_CLIP = {
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class _Place:
    """A tensor of a file; with `third` the rows of one of three tensors in it."""

    file: Any
    name: str
    third: int | None = None

    def read(self) -> Tensor:
        tensor: Tensor = self.file.get_tensor(self.name)
        return tensor if self.third is None else tensor.chunk(3)[self.third]


class BaseTensors:
    """The tensors of a base's UNet and text encoders, opened for reading one at a time.

    Names are `unet.PATH.weight` with diffusers' or Stability's path, `text_encoder.PATH.weight` and
    `text_encoder_2.PATH.weight` with the path in transformers, which starts with `text_model`.
    """

    def __init__(self, source: Source) -> None:
        """Take a local base; see `lora_studio.models.locate`."""
        self.source = source
        self._stack = ExitStack()
        self._places: dict[str, _Place] = {}

    def __enter__(self) -> Self:
        path = Path(self.source.location)
        try:
            if self.source.kind == "file":
                file = self._open(path)
                self._places = dict(_places_in_file(file))
            else:
                for part in PARTS.values():
                    self._add_part(weights_file(path / part), part)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            self._stack.close()
            raise InputError(
                f"{self.source.name} cannot be read: {error}.", "Download or copy it again.", code="base_broken"
            ) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    @property
    def names(self) -> list[str]:
        """The tensors' names, in the order of the files."""
        return list(self._places)

    def read(self, name: str) -> Tensor:
        """Return one tensor, on the CPU in its own dtype."""
        return self._places[name].read()

    def _open(self, path: Path) -> Any:
        return self._stack.enter_context(safe_open(path, framework="pt"))

    def _add_part(self, path: Path, part: str) -> None:
        files = [path]
        if path.suffix == ".json":
            shards = json.loads(path.read_text("utf-8"))["weight_map"].values()
            files = [path.parent / Path(name).name for name in dict.fromkeys(shards)]
        for file in map(self._open, files):
            for name in file.keys():  # noqa: SIM118 - not a mapping
                bare = name.startswith(("encoder.", "embeddings.", "final_layer_norm."))
                path_in_part = f"text_model.{name}" if part != "unet" and bare else name
                self._places[f"{part}.{path_in_part}"] = _Place(file, name)


def _places_in_file(file: Any) -> Iterator[tuple[str, _Place]]:
    for name in file.keys():  # noqa: SIM118 - not a mapping
        if name.startswith(_UNET):
            yield f"unet.{name.removeprefix(_UNET)}", _Place(file, name)
        elif name.startswith(_FIRST):
            yield f"text_encoder.{name.removeprefix(_FIRST)}", _Place(file, name)
        elif match := _SECOND.fullmatch(name):
            yield from _open_clip_places(file, name, match[1], match[2])


def _open_clip_places(file: Any, name: str, layer: str | None, rest: str) -> Iterator[tuple[str, _Place]]:
    if layer is None:
        if rest.startswith("ln_final."):
            yield f"text_encoder_2.text_model.final_layer_norm.{rest.partition('.')[2]}", _Place(file, name)
        return
    start = f"text_encoder_2.text_model.encoder.layers.{layer}"
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        for third, projection in enumerate(_PROJECTIONS):
            yield f"{start}.self_attn.{projection}.{kind}", _Place(file, name, third)
    else:
        module, _, kind = rest.rpartition(".")
        if module in _OPEN_CLIP:
            yield f"{start}.{_OPEN_CLIP[module]}.{kind}", _Place(file, name)
