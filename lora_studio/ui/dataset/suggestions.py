"""Tags to suggest while one is typed, and a tagger's confidence in the tags of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lora_studio.dataset.captions.text import split_tags
from lora_studio.dataset.tagging.cache import cached_confidences, cached_predictions
from lora_studio.dataset.tagging.labels import CHARACTER, GENERAL
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.image_item import ImageItem
from lora_studio.workspace.project import Home

MAX_SUGGESTIONS = 8


class Suggestion(NamedTuple):
    """A tag, and the number of the dataset's images that have it."""

    tag: str
    images: int


@dataclass(frozen=True)
class TagSuggester:
    """Suggests tags from the dataset's captions and from cached predictions of a home's taggers."""

    home: Home

    def confidences(self, item: ImageItem) -> Mapping[str, float]:
        """Return a tagger's confidence (0 to 1) in each tag of an image; empty if no tagger has seen it."""
        return cached_confidences(self.home, item.info.sha256) if item.info else {}

    def suggest(self, contents: Contents, typed: str, item: ImageItem | None) -> list[Suggestion]:
        """Return tags that begin with the typed text, then those with a word that does, the most frequent first.

        Tags of the dataset come before those that only the image's tagger knows. Tags that the image has are left out.
        """
        start = " ".join(typed.split()).casefold().replace("_", " ")
        if not start:
            return []
        existing = {tag.casefold() for tag in split_tags(item.caption or "")} if item else set()
        known = [
            Suggestion(count.tag, count.images)
            for count in contents.captions.tag_table.frequencies
            if count.tag.casefold() not in existing
        ]
        used = existing | {suggestion.tag.casefold() for suggestion in known}
        known += [Suggestion(name, 0) for name in self._vocabulary(item) if name.casefold() not in used]
        first = [suggestion for suggestion in known if suggestion.tag.casefold().startswith(start)]
        later = [
            suggestion for suggestion in known if f" {start}" in suggestion.tag.casefold() and suggestion not in first
        ]
        return [*first, *later][:MAX_SUGGESTIONS]

    def _vocabulary(self, item: ImageItem | None) -> list[str]:
        """Return all tags that the tagger which has seen an image can assign."""
        found = cached_predictions(self.home, [item.info.sha256]) if item and item.info else None
        return [label.name for label in found.labels if label.category in (GENERAL, CHARACTER)] if found else []
