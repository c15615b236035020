"""Words for captions: what to suggest while a tag is typed, and how sure a tagger is of the tags of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lora_studio.dataset.captions.text import split_tags
from lora_studio.dataset.tagging.cache import cached_confidences, cached_predictions
from lora_studio.dataset.tagging.labels import CHARACTER, GENERAL
from lora_studio.ui.dataset.contents import Contents, ImageItem
from lora_studio.workspace.project import Home

MAX_SUGGESTIONS = 8


class Suggestion(NamedTuple):
    """A tag, and on how many images it is."""

    tag: str
    images: int


@dataclass(frozen=True)
class TagSuggester:
    """What a home's taggers and a dataset's captions know."""

    home: Home

    def confidences(self, item: ImageItem) -> Mapping[str, float]:
        """How sure a tagger is of each tag of an image (0 to 1); empty if none has seen it."""
        return cached_confidences(self.home, item.info.sha256) if item.info else {}

    def suggest(self, contents: Contents, typed: str, item: ImageItem | None) -> list[Suggestion]:
        """Tags that begin with what is typed, then those with a word that does, the most frequent first.

        The dataset's own come before those that only the tagger knows that has seen the image. Those that the image
        has already are left out.
        """
        start = " ".join(typed.split()).casefold().replace("_", " ")
        if not start:
            return []
        existing = {tag.casefold() for tag in split_tags(item.caption or "")} if item else set()
        known = [
            Suggestion(count.tag, count.images)
            for count in contents.tag_table.frequencies
            if count.tag.casefold() not in existing
        ]
        used = existing | {word.tag.casefold() for word in known}
        known += [Suggestion(name, 0) for name in self._vocabulary(item) if name.casefold() not in used]
        first = [word for word in known if word.tag.casefold().startswith(start)]
        later = [word for word in known if f" {start}" in word.tag.casefold() and word not in first]
        return [*first, *later][:MAX_SUGGESTIONS]

    def _vocabulary(self, item: ImageItem | None) -> list[str]:
        """What the tagger that has seen an image can say of one."""
        found = cached_predictions(self.home, [item.info.sha256]) if item and item.info else None
        return [label.name for label in found.labels if label.category in (GENERAL, CHARACTER)] if found else []
