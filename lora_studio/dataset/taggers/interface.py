"""What every tagger does, and what it says about a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from lora_studio.dataset.captions import join_tags


@dataclass(frozen=True)
class Tag:
    """A tag as it stands in a caption, and how sure the tagger is of it (0 to 1)."""

    name: str
    confidence: float


@dataclass(frozen=True)
class Description:
    """What a tagger says about one picture: tags, the surest first, or a sentence."""

    tags: tuple[Tag, ...] = ()
    sentence: str = ""

    @property
    def caption(self) -> str:
        """One line; empty if the tagger is sure of nothing."""
        return self.sentence or join_tags(tag.name for tag in self.tags)


class Tagger(Protocol):
    """A loaded model."""

    @property
    def name(self) -> str:
        """What people call it."""

    def describe(self, images: Sequence[Image.Image]) -> list[Description]:
        """Say what is in each of the images (upright RGB, of any size and shape), in their order."""
