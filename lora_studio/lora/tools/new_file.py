"""The check of an output's name, which every tool makes first."""

from __future__ import annotations

from pathlib import Path

from lora_studio.errors import InputError


def check_new_file(path: Path) -> None:
    """Raise InputError unless `path` is a .safetensors file that does not exist yet."""
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"The output {path} is not a .safetensors file.", "Give such a name.", code="out_format")
    if path.exists():
        raise InputError(f"{path} exists already.", "Give another name: files are not overwritten.", code="exists")
