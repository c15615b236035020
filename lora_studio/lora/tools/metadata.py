"""Edit and strip the metadata of a .safetensors file; the tensors are copied byte for byte into a new file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from lora_studio.errors import InputError
from lora_studio.files import write_atomic
from lora_studio.lora.alphas import PEFT_METADATA
from lora_studio.lora.header import MAX_HEADER_BYTES, METADATA_FIELDS, read_header
from lora_studio.lora.tools.new_file import check_new_file

# What programs need to load a file: its format, its architecture, its network and its alphas.
NEEDED = frozenset(
    {
        "format",
        PEFT_METADATA,
        "modelspec.sai_model_spec",
        "modelspec.architecture",
        "modelspec.implementation",
        "modelspec.prediction_type",
        "ss_base_model_version",
        "ss_v2",
        "ss_v_parameterization",
        "ss_network_module",
        "ss_network_dim",
        "ss_network_alpha",
        "ss_network_args",
        "sshs_model_hash",
    }
)


def read_metadata(path: Path | str) -> dict[str, str]:
    """Return the metadata of any .safetensors file; raise InputError if it cannot be read."""
    return _metadata(read_header(Path(path))[0])


def edit_metadata(source: Path | str, out: Path | str, changes: Mapping[str, str]) -> dict[str, str]:
    """Write a copy with other metadata and return that; an empty value removes an entry.

    `changes` has values by the names in `METADATA_FIELDS`, or by whole keys like `modelspec.date`. Raises InputError
    for other names, and if `out` exists.
    """
    unknown = [
        name for name in changes if name not in METADATA_FIELDS and "." not in name and not name.startswith("ss_")
    ]
    if unknown:
        raise InputError(
            f"There is no metadata field {unknown[0]!r}.",
            f"Use one of {', '.join(METADATA_FIELDS)}, or a whole key like modelspec.date.",
            code="metadata_field",
        )
    metadata = read_metadata(source)
    for name, value in changes.items():
        key = METADATA_FIELDS.get(name, name)
        if value:
            metadata[key] = value
        else:
            metadata.pop(key, None)
    _copy_with_metadata(Path(source), Path(out), metadata)
    return metadata


def strip_metadata(source: Path | str, out: Path | str) -> dict[str, str]:
    """Write a copy without the metadata that loading does not need (tags, folders, dates), and return what is left.

    Raises InputError, also if `out` exists.
    """
    metadata = {key: value for key, value in read_metadata(source).items() if key in NEEDED}
    _copy_with_metadata(Path(source), Path(out), metadata)
    return metadata


def _metadata(header: Mapping[str, object]) -> dict[str, str]:
    values = header.get("__metadata__", {})
    return {str(key): str(value) for key, value in values.items()} if isinstance(values, dict) else {}


def _copy_with_metadata(source: Path, out: Path, metadata: Mapping[str, str]) -> None:
    check_new_file(out)
    header, offset = read_header(source)
    header.pop("__metadata__", None)
    whole = {"__metadata__": dict(metadata), **header} if metadata else header
    text = json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the format aligns the tensors to 8 bytes
    if len(text) > MAX_HEADER_BYTES:
        raise InputError("The metadata is longer than 4 MB.", "Shorten the description.", code="metadata_size")

    def write(temporary: Path) -> None:
        with source.open("rb") as reader, temporary.open("wb") as writer:
            writer.write(len(text).to_bytes(8, "little") + text)
            reader.seek(offset)
            shutil.copyfileobj(reader, writer, 1024**2)

    write_atomic(out, write)
