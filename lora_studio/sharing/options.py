"""What a person decides about a release."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

from pydantic import Field, field_validator

from lora_studio.models.catalogue import KnownBase
from lora_studio.settings.declare import Settings
from lora_studio.workspace.job_folder import slugify


class License(StrEnum):
    """Licences by the Hub's identifiers; `OTHER` needs a name and a link."""

    OPENRAIL_PLUS = "openrail++"
    OPENRAIL_M = "creativeml-openrail-m"
    CC_BY = "cc-by-4.0"
    CC_BY_NC = "cc-by-nc-4.0"
    CC0 = "cc0-1.0"
    APACHE = "apache-2.0"
    MIT = "mit"
    OTHER = "other"


KNOWN_NAMES = {
    "CreativeML Open RAIL++-M": License.OPENRAIL_PLUS,
    "CreativeML Open RAIL-M": License.OPENRAIL_M,
    "Apache-2.0": License.APACHE,
}


class ReleaseOptions(Settings):
    """The decisions about a release; empty ones are taken from what is known about the LoRA."""

    name: str = Field(
        default="", max_length=60, description="Name of the files, as prompts write it (default: the run's)."
    )
    strength: float | None = Field(
        default=None,
        ge=-4,
        le=4,
        description="Recommended strength, which all texts name (default: that of the last test, else 1).",
    )
    description: str = Field(default="", max_length=20_000, description="What the LoRA draws, in a few sentences.")
    license: License | None = Field(
        default=None, description="Licence by the Hub's identifier (default: the base's, of which a LoRA is derived)."
    )
    license_name: str = Field(default="", max_length=200, description="Name of a licence that is none of the others.")
    license_link: str = Field(default="", max_length=500, description="Address of that licence.")
    preview: Path | None = Field(
        default=None, description="Picture that programs show beside the file (default: one from the tests or samples)."
    )
    strip_tags: bool = Field(default=False, description="Leave tags, folder names and dates out of the file.")
    adult: bool = Field(default=False, description="Mark it as not for all audiences.")

    @field_validator("name")
    @classmethod
    def _has_a_letter(cls, value: str) -> str:
        if value and not slugify(value):
            raise ValueError("should have a letter or a digit")
        return value


def license_of(base: KnownBase | None) -> tuple[License | None, str, str]:
    """Return the licence of a base as identifier, name and link; the identifier is None if it is not known."""
    if base is None or not base.license:
        return None, "", ""
    name = re.split("[:;,]", base.license)[0].strip()
    return KNOWN_NAMES.get(name, License.OTHER), name, base.license_url
