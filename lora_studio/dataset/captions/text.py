"""The text of captions, and the caption files beside the images.

A caption is one line of tags separated by commas. A sentence with commas survives, since joining is the inverse of
splitting. The caption file has the stem of the image; `dataset.captions.extension` decides on its suffix.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from lora_studio.dataset.captions.extension import caption_suffixes
from lora_studio.errors import InputError
from lora_studio.files import cached_by_stamp, write_text
from lora_studio.settings.choices import TagPosition


def split_tags(caption: str) -> list[str]:
    """Return the tags in order, with whitespace normalised and without empty tags and repetitions."""
    tags = [" ".join(tag.split()) for tag in caption.split(",")]
    return list(dict.fromkeys(filter(None, tags)))


def join_tags(tags: Iterable[str]) -> str:
    """Return the tags as one line, separated by a comma and a space as kohya's tools write them."""
    return ", ".join(tags)


def with_trigger(caption: str, trigger: str) -> str:
    """Return the caption with the trigger word first and nowhere else (idempotent).

    A trigger word that is already a tag is moved to the front, ignoring case, since the text encoders read lower case.
    It is removed from a longer phrase only if it is not a dictionary-like word ("saria_zelda", "style-2"): removing
    "cat" from "cat ears" would change the meaning. A caption that begins with the trigger word ("ohwx woman, smiling")
    keeps its first tag. Several trigger words, separated by commas, keep their order.
    """
    tags = split_tags(caption)
    for word in reversed(split_tags(trigger)):
        tags = _with_trigger_word(tags, word)
    return join_tags(tags)


@lru_cache(maxsize=1024)
def word_pattern(word: str) -> re.Pattern[str]:
    """Return a pattern that matches a trigger word in a tag as a whole word, ignoring case."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def _with_trigger_word(tags: list[str], word: str) -> list[str]:
    pattern = word_pattern(word)
    match = pattern.match(tags[0]) if tags else None
    after, rest = (tags[0][match.end() :], tags[1:]) if match else ("", tags)
    if not word.isalpha():
        after = pattern.sub("", after)
        rest = [pattern.sub("", tag) for tag in rest]
    return split_tags(join_tags([word + after, *(tag for tag in rest if tag.casefold() != word.casefold())]))


def split_fixed_tags(caption: str, trigger: str = "", keep_tokens: int = 0) -> tuple[list[str], list[str]]:
    """Return the tags that stay at the start of the caption, and those that may be shuffled or dropped.

    The fixed tags are, for each trigger word, the first tag that contains it, and then the first `keep_tokens` tags.
    """
    tags = split_tags(caption)
    first: list[str] = []
    for word in split_tags(trigger):
        pattern = word_pattern(word)
        first += [tag for tag in [next(filter(pattern.search, tags), None)] if tag is not None and tag not in first]
    fixed = [*first, *(tag for tag in tags[:keep_tokens] if tag not in first)]
    return fixed, [tag for tag in tags if tag not in fixed]


def without_tags(caption: str, tags: Iterable[str]) -> str:
    """Return the caption without these whole tags, ignoring case; the text is unchanged if it has none of them."""
    unwanted = {tag.strip().casefold() for tag in tags}
    parts = split_tags(caption)
    kept = [tag for tag in parts if tag.casefold() not in unwanted]
    return caption if len(kept) == len(parts) else join_tags(kept)


def with_tags(caption: str, tags: str, position: TagPosition, trigger: str = "") -> str:
    """Return the caption with those of the tags (separated by commas) that it lacks, ignoring case.

    `AFTER_TRIGGER` inserts them after the last tag with a trigger word, or in front if there is none.
    """
    parts = split_tags(caption)
    present = {tag.casefold() for tag in parts}
    missing = [tag for tag in _split_cached(tags) if tag.casefold() not in present]
    if not missing:
        return caption
    place = len(parts)
    if position is TagPosition.FRONT:
        place = 0
    elif position is TagPosition.AFTER_TRIGGER:
        patterns = [word_pattern(word) for word in _split_cached(trigger)]
        while place and not any(pattern.search(parts[place - 1]) for pattern in patterns):
            place -= 1
    return join_tags([*parts[:place], *missing, *parts[place:]])


@lru_cache(maxsize=64)
def _split_cached(text: str) -> tuple[str, ...]:
    """Split a text that is the same for many captions (cached)."""
    return tuple(split_tags(text))


def with_replaced(caption: str, old: str, new: str) -> str:
    """Return the caption with the whole tag `old`, ignoring case, replaced by `new` (tags separated by commas).

    A tag that the caption already has is not repeated. The text is unchanged if `old` is not one of its tags.
    """
    parts = split_tags(caption)
    target = " ".join(old.split()).casefold()
    if target not in {tag.casefold() for tag in parts}:
        return caption
    replaced = [tag for part in parts for tag in (split_tags(new) if part.casefold() == target else [part])]
    return join_tags(deduplicated(replaced))


def deduplicated(tags: Iterable[str]) -> list[str]:
    """Return the tags without repetitions, ignoring case; the first spelling is kept."""
    first: dict[str, str] = {}
    for tag in tags:
        first.setdefault(tag.casefold(), tag)
    return list(first.values())


def caption_file(image: Path) -> Path:
    """Return the path at which the caption of an image is written."""
    return image.with_suffix(caption_suffixes(image)[0])


def existing_caption(image: Path) -> Path | None:
    """Return the caption file of an image, or None if it has none."""
    for suffix in caption_suffixes(image):
        file = image.with_suffix(suffix)
        if file.is_file():
            return file
    return None


def read_caption(image: Path, suffixes: Iterable[str] | None = None) -> str | None:
    """Return the caption of an image without surrounding whitespace, "" for an empty file, None without a file.

    `suffixes` are, by default, those that its dataset uses; the first that exists wins. See `decode_text` for the
    encoding. Raises InputError if the file cannot be read.
    """
    data = caption_bytes(image, suffixes)
    return None if data is None else decode_text(data).strip()


def caption_bytes(image: Path, suffixes: Iterable[str] | None = None) -> bytes | None:
    """Return the content of an image's caption file, None without a file. Raises InputError if it cannot be read.

    Cached until the file changes: the Dataset tab asks for all captions at every click.
    """
    for suffix in caption_suffixes(image) if suffixes is None else suffixes:
        file = image.with_suffix(suffix)
        try:
            return _read_bytes(file)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            continue
        except OSError as error:
            raise InputError(
                f"The caption {file.name!r} cannot be read: {error.strerror}.",
                "Check the permissions of the file.",
                code="caption",
            ) from error
    return None


@cached_by_stamp(maxsize=100_000)
def _read_bytes(file: Path) -> bytes:
    return file.read_bytes()


def decode_text(data: bytes) -> str:
    """Decode UTF-16 with a byte order mark, UTF-8 with or without one, and anything else as Latin-1."""
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def write_caption(image: Path, text: str) -> Path:
    """Write the caption of an image atomically as one line of UTF-8; return its file."""
    file = caption_file(image)
    write_text(file, " ".join(text.split()))
    return file
