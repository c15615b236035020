"""Read and check the header of a LoRA file from any trainer, before a tensor is loaded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lora_studio.errors import InputError
from lora_studio.hub import PICKLE_SUFFIXES
from lora_studio.lora.names import EMBEDDING_KEY, VECTOR_PARTS, split_tensor_name

# A rank-128 LoCon of all of SDXL with 1.5 MB of tag frequencies has a 3 MB header and 3,500 tensors.
MAX_HEADER_BYTES = 4 * 1024**2
MAX_TENSORS = 10_000
MAX_NAME_LENGTH = 512
# Entries of Stability's model specification 1.0.1 that people edit and model managers show, by short names.
METADATA_FIELDS = {
    "title": "modelspec.title",
    "author": "modelspec.author",
    "license": "modelspec.license",
    "description": "modelspec.description",
    "trigger": "modelspec.trigger_phrase",
    "tags": "modelspec.tags",
}
# The tensors that a complete layer needs, and those that it may also have.
COMPLETE_LAYERS: tuple[tuple[set[str], set[str]], ...] = (
    ({"lora_down.weight", "lora_up.weight"}, {"lora_mid.weight"}),
    ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}, set()),
    ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"}, set()),
    ({"diff"}, set()),
    ({"weight", "on_input"}, set()),
    ({"lokr_w1", "lokr_w2"}, set()),
    ({"lokr_w1", "lokr_w2_a", "lokr_w2_b"}, {"lokr_t2"}),
    ({"lokr_w1_a", "lokr_w1_b", "lokr_w2"}, set()),
    ({"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}, {"lokr_t2"}),
)
# Names of other architectures, and what they are.
FOREIGN_KEYS = (
    (re.compile(r"lora_te_|lora_unet_down_blocks_3_"), "a LoRA for Stable Diffusion 1 or 2"),
    (
        re.compile(
            r"lora_unet_(?:double|single|joint)_blocks|lora_transformer_|transformer\.|lora_te3_"
            r"|(?:base_model\.model\.)?(?:diffusion_model\.)?(?:double_blocks|single_blocks|joint_blocks"
            r"|transformer_blocks|single_transformer_blocks|blocks|layers)\."
        ),
        "a LoRA for another architecture, like FLUX or Stable Diffusion 3",
    ),
    (re.compile(r"(?:model\.diffusion_model|conditioner|first_stage_model|cond_stage_model)\."), "a base model"),
)
# Tensors of networks whose change of a weight is not a matrix that a file contains, and what they are.
OTHER_NETWORKS = (
    (re.compile(r".+\.(?:oft_blocks|oft_diag|oft_r|oft_R)(?:\..*)?"), "an OFT or BOFT network, which rotates weights"),
    (re.compile(r".+\.boft_[RsP](?:\..*)?"), "a BOFT network, which rotates weights"),
    (re.compile(r".+\.(?:a1|a2|b1|b2|bm1|bm2)(?:\.weight)?"), "a GLoRA network, whose change depends on the weights"),
    (re.compile(r".+\.ia3_l(?:\..*)?"), "an IA3 network of peft, which scales activations"),
    (re.compile(r".+\.vera_lambda_[bd](?:\..*)?"), "a VeRA network, whose matrices are drawn from a seed"),
    (re.compile(r".+\.(?:set_weight|reshape_weight)"), "a file of ComfyUI that replaces weights"),
    (re.compile(r".+\.lora_(?:B|up)(?:\.default)?\.bias"), "a LoRA that trains biases (lora_bias)"),
    (re.compile(r".+\.lora_embedding_[AB](?:\..*)?"), "a LoRA that trains embeddings"),
)
MERGE_REMEDY = (
    "Merge it into its base with the program that trained it, then extract a LoRA from the result: "
    "python -m lora_studio lora extract."
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

    @cached_property
    def modules(self) -> dict[str, dict[str, str]]:
        """The layers that the LoRA changes, by name (see `lora.names`): kohya's tensor name -> full tensor name."""
        found: dict[str, dict[str, str]] = {}
        for name in self.tensors:
            if (split := split_tensor_name(name)) is not None:
                found.setdefault(split[0], {})[split[1]] = name
        return found

    @property
    def embeddings(self) -> list[str]:
        """The textual inversion embeddings that OneTrainer bundles with a LoRA, by the words that prompts use."""
        matches = (EMBEDDING_KEY.fullmatch(name) for name in self.tensors)
        return sorted({match[1] for match in matches if match})

    @property
    def has_text_encoder(self) -> bool:
        """True if it changes a text encoder, so that prompts must be encoded again at every strength."""
        return any(name.startswith(("lora_te", "text_encoder")) for name in self.modules)

    @property
    def has_vectors(self) -> bool:
        """True if it changes biases or norms, beside or instead of the weights of layers."""
        return any(self.vector_parts(layer) for layer in self.modules)

    def vector_parts(self, layer: str) -> dict[str, str]:
        """Return the parts of a layer that change a bias or a norm, with their full tensor names.

        ComfyUI's `diff` of a norm is a vector, that of another layer a matrix.
        """
        parts = self.modules[layer]
        vectors = {part: name for part, name in parts.items() if part in VECTOR_PARTS}
        if "diff" in parts and len(self.tensors[parts["diff"]][1]) < 2:
            vectors["w_norm"] = parts["diff"]
        return vectors

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
    return lora_file_of(path, *read_header(path))


def lora_file_of(path: Path, header: Mapping[str, Any], offset: int) -> LoraFile:
    """Return the LoRA file with this header and data offset; raise InputError if it is not a LoRA for SDXL."""
    header = dict(header)
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


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the JSON header of any .safetensors file and the offset of its data.

    The format is https://github.com/huggingface/safetensors#format. Raises InputError for a file that is missing, a
    pickle, damaged or has a header above 4 MB.
    """
    if not path.is_file():
        raise InputError(f"LoRA {path} does not exist.", "Give the path of a .safetensors file.", code="lora_missing")
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise _lora_file_error(
            path, "is a pickle, which can run arbitrary code when it is opened.", "Convert it to .safetensors first."
        )
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
    if not all(_is_tensor(entry) for name, entry in header.items() if name != "__metadata__"):
        raise _lora_file_error(path, "has a damaged header.", damaged)
    return header, 8 + length


def _is_tensor(entry: object) -> bool:
    """Return whether an entry of a header has a type and a shape of whole numbers from 0."""
    shape = entry.get("shape") if isinstance(entry, dict) else None
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("dtype"), str)
        and isinstance(shape, list)
        and all(isinstance(side, int) and side >= 0 for side in shape)
    )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > len(result := dict(pairs)):
        raise ValueError("duplicate name")
    return result


def _check_keys(path: Path, names: Collection[str]) -> None:
    """Raise InputError unless all tensors are those of a LoRA for SDXL and every layer is complete."""
    for pattern, what in FOREIGN_KEYS:
        if found := next((name for name in names if pattern.match(name)), None):
            raise _lora_file_error(
                path, f"is {what}, not a LoRA for SDXL (it has {found!r}).", "Choose a LoRA for SDXL."
            )
    for pattern, what in OTHER_NETWORKS:
        if found := next((name for name in names if pattern.fullmatch(name)), None):
            raise InputError(f"LoRA {path.name} is {what} (it has {found!r}).", MERGE_REMEDY, code="lora_network")
    layers: dict[str, list[str]] = {}
    for name in names:
        split = split_tensor_name(name)
        if split is not None:
            layers.setdefault(split[0], []).append(split[1])
        elif not EMBEDDING_KEY.fullmatch(name):
            what = f"does not look like a LoRA for SDXL (it has {name[:80]!r})."
            raise _lora_file_error(path, what, "Choose a LoRA in the format of kohya, LyCORIS, diffusers or peft.")
    if not layers:
        raise _lora_file_error(path, "does not look like a LoRA for SDXL.", "Choose a LoRA in kohya's format.")
    for layer, parts in layers.items():
        if len(set(parts)) < len(parts) or not _is_complete(set(parts)):
            what = f"has an incomplete or unknown set of tensors in layer {layer!r}."
            raise _lora_file_error(path, what, "Download or copy it again.")


def _is_complete(parts: set[str]) -> bool:
    vectors = parts & VECTOR_PARTS
    weights = parts - {"alpha", "dora_scale"} - vectors
    return bool(vectors and not weights) or any(
        needed <= weights <= needed | allowed for needed, allowed in COMPLETE_LAYERS
    )


def _lora_file_error(path: Path, what: str, remedy: str) -> InputError:
    return InputError(f"LoRA {path.name} {what}", remedy, code="lora_file")
