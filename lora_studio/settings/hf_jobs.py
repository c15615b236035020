"""What a training on Hugging Face Jobs needs beside its job: the hardware and the time limit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from lora_studio.settings.declare import Settings

SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400}
FLAVOR = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
TIMEOUT = re.compile(r"(\d+(?:\.\d+)?)([smhd])")

# The GPUs of Hugging Face Jobs by the beginning of their flavors: name, and memory in GiB as nvidia-smi lists it.
GPUS = {
    "t4": ("T4", 15.0),
    "l4": ("L4", 22.5),
    "l40s": ("L40S", 45.0),
    "a10g": ("A10G", 22.5),
    "a100": ("A100", 80.0),
    "h200": ("H200", 140.4),
    "rtx-pro-6000": ("RTX PRO 6000", 95.6),
}
GPU_FLAVOR = re.compile(rf"({'|'.join(sorted(GPUS, key=len, reverse=True))})(?:-(?:small|medium|large))?(?:x(\d+))?")


@dataclass(frozen=True)
class FlavorGpu:
    """The GPUs of a flavor: their name, the memory of each in GiB, and their number."""

    name: str
    vram_gib: float
    count: int = 1


def gpu_of_flavor(flavor: str) -> FlavorGpu | None:
    """Return the GPUs of a flavor of Hugging Face Jobs; None if it has none, or is not known here."""
    found = GPU_FLAVOR.fullmatch(flavor)
    return FlavorGpu(*GPUS[found[1]], count=int(found[2] or 1)) if found else None


def _check_flavor(value: str) -> str:
    if not FLAVOR.fullmatch(value):
        raise ValueError("should be the name of a hardware of Hugging Face Jobs, like a10g-large")
    return value


def _check_timeout(value: str) -> str:
    if not TIMEOUT.fullmatch(value) or _seconds(value) < 1:
        raise ValueError("should be a number with its unit (s, m, h or d), like 90m or 3h")
    return value


def _seconds(timeout: str) -> int:
    return int(float(timeout[:-1]) * SECONDS_PER_UNIT[timeout[-1]])


class HfJobsSettings(Settings):
    """Hardware and time limit of a training on Hugging Face Jobs."""

    flavor: Annotated[str, AfterValidator(_check_flavor)] = Field(
        default="a10g-large",
        description="Hardware of Hugging Face Jobs, like a10g-large (24 GB) or a100-large (80 GB).",
    )
    timeout: Annotated[str, AfterValidator(_check_timeout)] = Field(
        default="3h", description="Time limit, like 90m or 3h: the service ends the job then, and it limits the cost."
    )

    @property
    def timeout_seconds(self) -> int:
        """The time limit in seconds."""
        return _seconds(self.timeout)
