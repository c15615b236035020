"""Settings of the captions: their files, and how they vary from sample to sample."""

from __future__ import annotations

import re
from typing import Any

from pydantic import field_validator

from lora_studio.settings.choices import TokenLimit
from lora_studio.settings.declare import MAX_STEPS, Group, Settings, setting, whole_steps

EXTENSION = re.compile(r"(\.[\w-]+)+")


class CaptionSettings(Settings):
    """How caption files become the captions of training samples."""

    caption_extension: str = setting(
        "",
        label="Caption extension",
        group=Group.CAPTIONS,
        why="Reads and writes caption files with this extension alone, like .txt2, here and in the Dataset tab, so "
        "that a dataset can have several sets of captions. Empty: .txt, else .caption.",
        max_length=40,
    )
    enable_wildcard: bool = setting(
        False,
        label="Wildcards",
        group=Group.CAPTIONS,
        why="Draws one of {red|blue} for each sample, and one of several lines of a caption file. Off: braces are "
        "text, and all lines are one caption.",
    )
    caption_prefix: str = setting(
        "",
        label="Caption prefix",
        group=Group.CAPTIONS,
        why="Text before every caption, with a space between; end it with a comma to make it a tag of its own. Empty: "
        "captions as they are in their files.",
        max_length=500,
    )
    caption_suffix: str = setting(
        "",
        label="Caption suffix",
        group=Group.CAPTIONS,
        why="Text after every caption, with a space between; begin it with a comma to make it a tag of its own. Empty: "
        "none.",
        max_length=500,
    )
    shuffle_caption: bool = setting(
        False,
        label="Shuffle tags",
        group=Group.CAPTIONS,
        why="Shuffles the tags each time, so that none depends on its position. Off for sentences.",
    )
    keep_tokens: int = setting(
        0,
        label="Keep first N tags",
        group=Group.CAPTIONS,
        why="The first N tags are never shuffled or dropped; neither is the trigger word.",
        ge=0,
        le=255,
    )
    keep_tokens_separator: str = setting(
        "",
        label="Keep tags before the mark",
        group=Group.CAPTIONS,
        why="A mark like ||| in captions: tags before it, and after a second one, are never shuffled or dropped, in "
        "place of the first N. Empty: no mark.",
        max_length=20,
    )
    caption_dropout_rate: float = setting(
        0.0,
        label="Caption dropout",
        group=Group.CAPTIONS,
        why="Fraction of samples trained without a caption, which lets a style show without being prompted; 0.05 to "
        "0.1 if wanted.",
        ge=0,
        le=1,
    )
    caption_tag_dropout_rate: float = setting(
        0.0,
        label="Tag dropout",
        group=Group.CAPTIONS,
        why="Fraction of tags dropped each time, so that no single tag is needed; the first N tags stay.",
        ge=0,
        le=1,
    )
    token_warmup_step: float = setting(
        0,
        label="Tag warmup",
        group=Group.CAPTIONS,
        unit="steps",
        why="Steps over which captions grow from their first tags to all of them, or a fraction of the run if below 1, "
        "so that the first tags are learned first. 0 is off: all tags are learned from the start.",
        ge=0,
        le=MAX_STEPS,
    )
    token_warmup_min: int = setting(
        1,
        label="Tags at the start",
        group=Group.CAPTIONS,
        why="How many of the tags that can be shuffled the tag warmup begins with; 1 is kohya's default.",
        ge=0,
        le=1000,
        only_with="token_warmup_step",
    )
    caption_variants: int = setting(
        8,
        label="Cached caption variants",
        group=Group.CAPTIONS,
        why="With frozen text encoders, this many shuffled variants of each caption are encoded in advance; more take "
        "only disk space.",
        ge=1,
        le=100,
    )
    max_token_length: TokenLimit = setting(
        TokenLimit.ONE,
        label="Max caption tokens",
        group=Group.CAPTIONS,
        why="Longer captions are truncated. 150 or 225 take a little more memory.",
    )

    @field_validator("caption_extension")
    @classmethod
    def _file_extension(cls, value: str) -> str:
        extension = value.strip()
        if not extension:
            return ""
        extension = f".{extension.removeprefix('.')}"
        if EXTENSION.fullmatch(extension) is None:
            raise ValueError(f"{value!r} is not a file extension; write for example .txt2")
        return extension

    @field_validator("caption_prefix", "caption_suffix", "keep_tokens_separator", mode="before")
    @classmethod
    def _one_line(cls, value: Any) -> Any:
        """Accept None as no text, and remove whitespace around it."""
        return "" if value is None else " ".join(value.split()) if isinstance(value, str) else value

    @field_validator("token_warmup_step")
    @classmethod
    def _whole_warmup_steps(cls, value: float) -> float:
        return whole_steps(value)

    @property
    def augments_captions(self) -> bool:
        """True if the caption of an image can differ from sample to sample, apart from caption dropout."""
        return bool(
            self.shuffle_caption or self.caption_tag_dropout_rate or self.token_warmup_step or self.enable_wildcard
        )
