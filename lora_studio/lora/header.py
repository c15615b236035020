"""Read and check the header of a LoRA file from any trainer, before a tensor is loaded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lora_studio.errors import InputError
from lora_studio.hub import PICKLE_SUFFIXES

# A rank-128 LoCon of all of SDXL with 1.5 MB of tag frequencies has a 3 MB header and 3,500 tensors.
MAX_HEADER_BYTES = 4 * 1024**2
MAX_TENSORS = 10_000
MAX_NAME_LENGTH = 512
# The tensor names of a layer in kohya's and LyCORIS' files, and the names that diffusers and peft use instead.
PART_NAMES = r"lora_(?:down|mid|up)\.weight|alpha|dora_scale|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2"
PART_ALIASES = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora.down.weight": "lora_down.weight",
    "lora.up.weight": "lora_up.weight",
    "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_linear_layer.up.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
    "lora_magnitude_vector.weight": "dora_scale",
}
KOHYA_KEY = re.compile(rf"(lora_(?:unet|te1|te2)_\w+)\.({PART_NAMES})")
PEFT_KEY = re.compile(
    rf"((?:unet|text_encoder|text_encoder_2)\.[\w.]+?)\.({'|'.join(map(re.escape, PART_ALIASES))}|{PART_NAMES})"
)
# The tensors that a complete layer needs, and those that it may also have.
COMPLETE_LAYERS: tuple[tuple[set[str], set[str]], ...] = (
    ({"lora_down.weight", "lora_up.weight"}, {"lora_mid.weight"}),
    ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}, set()),
    ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"}, set()),
    ({"lokr_w1", "lokr_w2"}, set()),
    ({"lokr_w1", "lokr_w2_a", "lokr_w2_b"}, {"lokr_t2"}),
    ({"lokr_w1_a", "lokr_w1_b", "lokr_w2"}, set()),
    ({"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}, {"lokr_t2"}),
)
FOREIGN_KEYS = (
    (re.compile(r"lora_te_"), "It was trained on Stable Diffusion 1 or 2"),
    (
        re.compile(r"lora_unet_(double|single|joint)_blocks|transformer\.|diffusion_model\."),
        "It was trained on another architecture, like Flux",
    ),
    (
        re.compile(r"lora_\w+\.(oft|boft|glora|ia3|a1|b1|dyn|on_input|diff|w_norm|b_norm)"),
        "It is a LyCORIS network of a type that is not supported (OFT, GLoRA, IA3, full...)",
    ),
    (re.compile(r"(model\.diffusion_model|conditioner|first_stage_model)\."), "It is a base model"),
)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file whose header is valid. `tensors` maps each tensor's name to its (dtype, shape)."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    data_offset: int

    @property
    def name(self) -> str:
        """The file's name without extension, as prompts write it in <lora:NAME:STRENGTH>."""
        return self.path.stem

    @property
    def is_kohya(self) -> bool:
        """True if tensor names are kohya's, False if they are peft's."""
        return KOHYA_KEY.fullmatch(next(iter(self.tensors), "")) is not None

    @property
    def modules(self) -> dict[str, dict[str, str]]:
        """The layers that the LoRA changes, by the file's layer name: kohya's tensor name -> full tensor name."""
        pattern = KOHYA_KEY if self.is_kohya else PEFT_KEY
        found: dict[str, dict[str, str]] = {}
        for name in self.tensors:
            if match := pattern.fullmatch(name):
                found.setdefault(match[1], {})[PART_ALIASES.get(match[2], match[2])] = name
        return found

    @property
    def has_text_encoder(self) -> bool:
        """True if it changes a text encoder, so that prompts must be encoded again at every strength."""
        return any(name.startswith(("lora_te", "text_encoder")) for name in self.tensors)

    @property
    def trigger_word(self) -> str:
        """The trigger word that the trainer wrote into the metadata; empty if it wrote none."""
        return self.metadata.get("modelspec.trigger_phrase", "").strip()

    @cached_property
    def model_hash(self) -> str:
        """The SHA-256 in hex of the file after its header: the hash that kohya and A1111 show for a LoRA."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            file.seek(self.data_offset)
            while block := file.read(1024**2):
                digest.update(block)
        return digest.hexdigest()


def read_lora_header(path: Path) -> LoraFile:
    """Read and check the header of a LoRA for SDXL, without loading a tensor.

    Raises InputError for a file that is missing, a pickle, damaged, oversized, or not a LoRA for SDXL.
    """
    if not path.is_file():
        raise InputError(f"LoRA {path} does not exist.", "Give the path of a .safetensors file.", code="lora_missing")
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise _lora_file_error(
            path, "is a pickle, which can run arbitrary code when it is opened.", "Convert it to .safetensors first."
        )
    header, offset = _read_header(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _lora_file_error(path, "has metadata that is not text.", "Save it again with another tool.")
    if len(header) > MAX_TENSORS or any(len(name) > MAX_NAME_LENGTH for name in header):
        raise _lora_file_error(
            path, f"has more than {MAX_TENSORS:,} tensors or overlong names.", "Choose a LoRA for SDXL."
        )
    _check_keys(path, header)
    try:
        tensors = {name: (str(entry["dtype"]), tuple(map(int, entry["shape"]))) for name, entry in header.items()}
    except (TypeError, KeyError, ValueError) as error:
        raise _lora_file_error(path, "has a damaged header.", "Download or copy it again.") from error
    return LoraFile(path, metadata, tensors, offset)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the JSON header and the offset of the data (https://github.com/huggingface/safetensors#format)."""
    damaged = "Download or copy it again; only .safetensors files are read."
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_HEADER_BYTES, path.stat().st_size - 8):
            raise _lora_file_error(
                path, "is not a complete safetensors file, or its header is larger than 4 MB.", damaged
            )
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _lora_file_error(path, "has a header that is not valid JSON.", damaged) from error
    if not isinstance(header, dict):
        raise _lora_file_error(path, "has a header that is not valid JSON.", damaged)
    return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > len(result := dict(pairs)):
        raise ValueError("duplicate name")
    return result


def _check_keys(path: Path, names: Collection[str]) -> None:
    """Raise InputError unless all tensors have kohya's or peft's names for SDXL and every layer is complete."""
    for pattern, what in FOREIGN_KEYS:
        if found := next((name for name in names if pattern.match(name)), None):
            raise _lora_file_error(
                path, f"cannot be used with SDXL. {what} (it has {found!r}).", "Choose a LoRA for SDXL."
            )
    pattern = KOHYA_KEY if any(map(KOHYA_KEY.fullmatch, names)) else PEFT_KEY
    layers: dict[str, set[str]] = {}
    for name in names:
        match = pattern.fullmatch(name)
        if match is None:
            raise _lora_file_error(
                path,
                f"does not look like a LoRA for SDXL (it has {name[:80]!r}).",
                "Choose a LoRA in kohya's format.",
            )
        layers.setdefault(match[1], set()).add(PART_ALIASES.get(match[2], match[2]))
    if not layers:
        raise _lora_file_error(path, "does not look like a LoRA for SDXL.", "Choose a LoRA in kohya's format.")
    for layer, parts in layers.items():
        weights = parts - {"alpha", "dora_scale"}
        if not any(needed <= weights <= needed | allowed for needed, allowed in COMPLETE_LAYERS):
            what = f"has an incomplete or unknown set of tensors in layer {layer!r}."
            raise _lora_file_error(path, what, "Download or copy it again.")


def _lora_file_error(path: Path, what: str, remedy: str) -> InputError:
    return InputError(f"LoRA {path.name} {what}", remedy, code="lora_file")
