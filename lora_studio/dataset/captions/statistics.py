"""Statistics of a folder's captions: tag frequencies, co-occurrence, and token counts.

Each tag is counted once per image, ignoring case, under the spelling that came first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lora_studio.dataset.captions.text import deduplicated, read_caption, split_tags
from lora_studio.dataset.captions.token_count import MAX_TOKENS, count_tokens
from lora_studio.dataset.validation_split import SplitSuggestion


class TagCount(BaseModel):
    """A tag, the number of images that have it, and their share of the counted images (0 to 1)."""

    model_config = ConfigDict(frozen=True)

    tag: str
    images: int
    share: float


class TokenCounts(BaseModel):
    """Minimum, maximum and mean number of tokens, and the number of captions above the encoders' `limit`."""

    model_config = ConfigDict(frozen=True)

    least: int
    most: int
    mean: float
    limit: int
    too_long: int


class CaptionStatistics(BaseModel):
    """Statistics of a folder: `tags` by frequency, and in `together` the tags that co-occur with the tag `of`."""

    images: int
    captioned: int
    tags: list[TagCount]
    of: str
    together: list[TagCount]
    tokens: TokenCounts
    split: SplitSuggestion | None = None


@dataclass(frozen=True)
class TagTable:
    """The tags of each captioned image."""

    tags: Mapping[Path, list[str]]

    @classmethod
    def of(cls, captions: Mapping[Path, str | None]) -> TagTable:
        """Build the table from captions, leaving out those that are None or empty."""
        return cls({path: tags for path, text in captions.items() if text and (tags := deduplicated(split_tags(text)))})

    @cached_property
    def spelling(self) -> dict[str, str]:
        """The first spelling of each tag, by the tag in lower case."""
        names: dict[str, str] = {}
        for tags in self.tags.values():
            for tag in tags:
                names.setdefault(tag.casefold(), tag)
        return names

    @cached_property
    def frequencies(self) -> list[TagCount]:
        """All tags, the most frequent first."""
        return self._counted(self.tags.values(), len(self.tags))

    def cooccurring(self, tag: str) -> list[TagCount]:
        """Return the other tags of the images that have `tag`, the most frequent first, with their share of those."""
        wanted = tag.strip().casefold()
        sets = [tags for tags in self.tags.values() if wanted in map(str.casefold, tags)]
        return [count for count in self._counted(sets, len(sets)) if count.tag.casefold() != wanted]

    def _counted(self, sets: Iterable[Sequence[str]], total: int) -> list[TagCount]:
        counts = Counter(tag.casefold() for tags in sets for tag in tags)
        return [
            TagCount(tag=self.spelling[tag], images=number, share=number / total)
            for tag, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ]


def caption_statistics(
    images: Sequence[Path], *, tag: str = "", split: SplitSuggestion | None = None
) -> CaptionStatistics:
    """Return the statistics of captions; co-occurrence is with `tag`, by default the most frequent one."""
    captions = {image: read_caption(image) for image in images}
    table = TagTable.of(captions)
    frequencies = table.frequencies
    of = tag.strip() or (frequencies[0].tag if frequencies else "")
    return CaptionStatistics(
        images=len(images),
        captioned=len(table.tags),
        tags=frequencies,
        of=of,
        together=table.cooccurring(of) if of else [],
        tokens=count_caption_tokens(text for text in captions.values() if text),
        split=split,
    )


def count_caption_tokens(captions: Iterable[str]) -> TokenCounts:
    """Return the statistics of the lengths of captions."""
    counts = [count_tokens(caption) for caption in captions] or [0]
    return TokenCounts(
        least=min(counts),
        most=max(counts),
        mean=round(sum(counts) / len(counts), 1),
        limit=MAX_TOKENS,
        too_long=sum(count > MAX_TOKENS for count in counts),
    )
