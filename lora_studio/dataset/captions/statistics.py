"""Figures about a folder's captions: how often each tag is there and with which others, and how long they are.

Tags are counted once an image, whatever their letter case, under the spelling that came first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lora_studio import guide
from lora_studio.dataset.captions.text import deduplicated, read_caption, split_tags
from lora_studio.dataset.captions.token_count import MAX_TOKENS, count_tokens
from lora_studio.dataset.validation_split import choose_validation_images


class TagCount(BaseModel):
    """A tag, the number of images that have it, and their share of those that were counted (0 to 1)."""

    model_config = ConfigDict(frozen=True)

    tag: str
    images: int
    share: float


class TokenCounts(BaseModel):
    """Tokens of the captions: least, most, mean, and how many captions are longer than the encoders read."""

    model_config = ConfigDict(frozen=True)

    least: int
    most: int
    mean: float
    limit: int
    too_long: int


class SplitSuggestion(BaseModel):
    """Which images to hold out of training: their share of all (0 to 1), the images themselves, and why."""

    model_config = ConfigDict(frozen=True)

    share: float
    held_out: list[Path]
    why: str


class CaptionStatistics(BaseModel):
    """The figures of a folder: `tags` by frequency, `together` those on images that have the tag `of`."""

    images: int
    captioned: int
    tags: list[TagCount]
    of: str
    together: list[TagCount]
    tokens: TokenCounts
    split: SplitSuggestion | None = None


@dataclass(frozen=True)
class TagTable:
    """Each captioned image's tags, to be counted in several ways."""

    tags: Mapping[Path, list[str]]

    @classmethod
    def of(cls, captions: Mapping[Path, str | None]) -> TagTable:
        """From captions; those that are None or empty are left out."""
        return cls({path: tags for path, text in captions.items() if text and (tags := deduplicated(split_tags(text)))})

    @cached_property
    def spelling(self) -> dict[str, str]:
        """Each tag in lower case with the spelling that came first."""
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
        """The other tags of the images that have `tag`, the most frequent first; the share is of those images."""
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
    """Count the captions of these images; `tag` is the one whose company is counted (default: the most frequent)."""
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
    """How long captions are."""
    counts = [count_tokens(caption) for caption in captions] or [0]
    return TokenCounts(
        least=min(counts),
        most=max(counts),
        mean=round(sum(counts) / len(counts), 1),
        limit=MAX_TOKENS,
        too_long=sum(count > MAX_TOKENS for count in counts),
    )


def suggest_split(
    images: Sequence[tuple[Path, str]], duplicates: Iterable[Iterable[Path]], *, seed: int
) -> SplitSuggestion:
    """What the guide would hold out of these images (path and SHA-256 of each), copies of one picture on one side.

    With the share and `seed` in a recipe, training holds out the same images.
    """
    if guide.tier_for(len(images)).name == "large":
        chosen = choose_validation_images(images, duplicates, share=guide.VALIDATION_SHARE, seed=seed)
        return SplitSuggestion(
            share=guide.VALIDATION_SHARE,
            held_out=sorted(chosen),
            why="The guide holds a tenth of a large set out, to see when the run begins to learn the others by heart.",
        )
    if len(images) < guide.MIN_IMAGES_FOR_VALIDATION:
        why = f"Below {guide.MIN_IMAGES_FOR_VALIDATION} images none can be spared, and so few would tell nothing."
    else:
        why = "The guide holds images out of large sets alone; hold out a tenth if you want to see overfitting begin."
    return SplitSuggestion(share=0.0, held_out=[], why=why)
