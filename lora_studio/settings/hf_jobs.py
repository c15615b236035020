"""What a training on Hugging Face Jobs needs beside its job: the hardware and the time limit."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lora_studio.settings.declare import Settings

SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class HfJobsSettings(Settings):
    """Hardware and time limit of a training on Hugging Face Jobs."""

    flavor: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")] = Field(
        default="a10g-large",
        description="Hardware of Hugging Face Jobs, like a10g-large (24 GB) or a100-large (80 GB).",
    )
    timeout: Annotated[str, Field(pattern=r"^[1-9]\d*(\.\d+)?[smhd]$")] = Field(
        default="3h", description="Time limit, like 90m or 3h: the service ends the job then, and it limits the cost."
    )

    @property
    def timeout_seconds(self) -> int:
        """The time limit in seconds."""
        return int(float(self.timeout[:-1]) * SECONDS_PER_UNIT[self.timeout[-1]])
