"""The embedded pack: a small SDXL base, a tagger and a captioner, trained for real, as folders on disk.

Their formats are those of real models, and the same code loads them. Training data, quality and training are described
in README.md in this folder.
"""

from __future__ import annotations

from pathlib import Path

from lora_studio.errors import InputError

PACK = Path(__file__).parent


def base_path() -> Path:
    """Return the base, a StableDiffusionXLPipeline folder, native resolution 128 px. Raises InputError if missing."""
    return _folder("base", "model_index.json")


def tagger_path() -> Path:
    """Return the tagger, a timm folder in the WD v3 taggers' layout. Raises InputError if missing."""
    return _folder("tagger", "selected_tags.csv")


def captioner_path() -> Path:
    """Return the captioner, a BLIP as a transformers folder. Raises InputError if missing."""
    return _folder("captioner", "processor_config.json")


def _folder(name: str, required: str) -> Path:
    folder = PACK / name
    if not (folder / required).is_file():
        raise InputError(
            f"The embedded model {folder} is missing or incomplete.",
            "Install the studio again, or build the pack with: python tools/build_demo_pack.py all",
            code="missing_pack",
        )
    return folder
