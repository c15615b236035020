"""The embedded pack: a small SDXL base, a tagger and a captioner that really work, as folders on disk.

They are in the formats that real models come in, and are loaded by the same code; only the path differs. How they were
made, how good they are and what they learned from stands in README.md beside them.
"""

from __future__ import annotations

from pathlib import Path

from lora_studio.errors import InputError

PACK = Path(__file__).parent


def base_path() -> Path:
    """The base: a StableDiffusionXLPipeline folder, native resolution 128 px. Raises InputError if it is missing."""
    return _folder("base", "model_index.json")


def tagger_path() -> Path:
    """The tagger: a folder as the WD v3 taggers have it, for timm. Raises InputError if it is missing."""
    return _folder("tagger", "selected_tags.csv")


def captioner_path() -> Path:
    """The captioner: a BLIP as a transformers folder. Raises InputError if it is missing."""
    return _folder("captioner", "processor_config.json")


def _folder(name: str, proof: str) -> Path:
    folder = PACK / name
    if not (folder / proof).is_file():
        raise InputError(
            f"The embedded model {folder} is missing or incomplete.",
            "Get the whole repository again, or build the pack with: python tools/build_demo_pack.py all",
            code="missing_pack",
        )
    return folder
