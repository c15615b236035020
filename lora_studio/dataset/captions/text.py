"""Captions: pure text, and the text files beside the images.

A caption is one line. Tags are separated by commas; a sentence with commas in it is kept as it is, since splitting and
joining are each other's inverse. The file has the image's stem: `.txt`, and `.caption` is read too.
"""

from __future__ import annotations

import os
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from lora_studio.errors import InputError
from lora_studio.files import cached_by_stamp, write_text
from lora_studio.settings.choices import TagPosition

CAPTION_SUFFIXES = (".txt", ".caption")  # in the order in which they are looked for; the first is written


def split_tags(caption: str) -> list[str]:
    """The caption's tags in order: white space normalised, no empty one, none twice."""
    tags = [" ".join(tag.split()) for tag in caption.split(",")]
    return list(dict.fromkeys(filter(None, tags)))


def join_tags(tags: Iterable[str]) -> str:
    """One line of tags, as kohya's tools write it: separated by a comma and a space."""
    return ", ".join(tags)


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger word first and nowhere else; doing it twice changes nothing.

    A trigger that is already a tag is moved to the front; letter case does not matter, as the text encoders read lower
    case. Inside a longer phrase it is moved only if it is no plain word ("saria_zelda", "style-2"): taking a plain
    "cat" out of "cat ears" would change what the phrase says. A caption that begins with the trigger
    ("ohwx woman, smiling") keeps its beginning. Several triggers, separated by commas, keep their order.
    """
    tags = split_tags(caption)
    for word in reversed(split_tags(trigger)):
        tags = _with_word(tags, word)
    return join_tags(tags)


@lru_cache(maxsize=1024)
def word_pattern(word: str) -> re.Pattern[str]:
    """What finds a trigger word in a tag, in any letter case, but not within another word."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def _with_word(tags: list[str], word: str) -> list[str]:
    pattern = word_pattern(word)
    match = pattern.match(tags[0]) if tags else None
    after, rest = (tags[0][match.end() :], tags[1:]) if match else ("", tags)
    if not word.isalpha():
        after = pattern.sub("", after)
        rest = [pattern.sub("", tag) for tag in rest]
    return split_tags(join_tags([word + after, *(tag for tag in rest if tag.casefold() != word.casefold())]))


def split_fixed_tags(caption: str, trigger: str = "", keep_tokens: int = 0) -> tuple[list[str], list[str]]:
    """A caption's tags: those that stay at its start, and those that may change places or be left out.

    Fixed are the tags that hold a trigger word (the first tag for each of its words, wherever it stands in the
    caption), then the first `keep_tokens` tags, in the caption's order.
    """
    tags = split_tags(caption)
    first: list[str] = []
    for word in split_tags(trigger):
        pattern = word_pattern(word)
        first += [tag for tag in [next(filter(pattern.search, tags), None)] if tag is not None and tag not in first]
    fixed = [*first, *(tag for tag in tags[:keep_tokens] if tag not in first)]
    return fixed, [tag for tag in tags if tag not in fixed]


def without_tags(caption: str, tags: Iterable[str]) -> str:
    """The caption without these whole tags, whatever their letter case; the same text if it has none of them."""
    unwanted = {tag.strip().casefold() for tag in tags}
    parts = split_tags(caption)
    kept = [tag for tag in parts if tag.casefold() not in unwanted]
    return caption if len(kept) == len(parts) else join_tags(kept)


def with_tags(caption: str, tags: str, position: TagPosition, trigger: str = "") -> str:
    """The caption with these tags (separated by commas), but for those that it has, whatever their letter case.

    After the trigger means after the tags that hold its words; in front if the caption has none of them.
    """
    parts = split_tags(caption)
    there = {tag.casefold() for tag in parts}
    more = [tag for tag in _tags_of(tags) if tag.casefold() not in there]
    if not more:
        return caption
    place = len(parts)
    if position is TagPosition.FRONT:
        place = 0
    elif position is TagPosition.AFTER_TRIGGER:
        patterns = [word_pattern(word) for word in _tags_of(trigger)]
        while place and not any(pattern.search(parts[place - 1]) for pattern in patterns):
            place -= 1
    return join_tags([*parts[:place], *more, *parts[place:]])


@lru_cache(maxsize=64)
def _tags_of(text: str) -> tuple[str, ...]:
    """The tags of what is the same for many captions."""
    return tuple(split_tags(text))


def with_replaced(caption: str, old: str, new: str) -> str:
    """The caption with `new` (tags separated by commas) in the place of the whole tag `old`, whatever its letter case.

    A tag that the caption has already is not doubled; the same text if `old` is none of its tags.
    """
    parts = split_tags(caption)
    wanted = " ".join(old.split()).casefold()
    if wanted not in {tag.casefold() for tag in parts}:
        return caption
    spread = [tag for part in parts for tag in (split_tags(new) if part.casefold() == wanted else [part])]
    return join_tags(deduplicated(spread))


def deduplicated(tags: Iterable[str]) -> list[str]:
    """The tags without those that were there before in whatever letter case."""
    first: dict[str, str] = {}
    for tag in tags:
        first.setdefault(tag.casefold(), tag)
    return list(first.values())


def caption_file(image: Path) -> Path:
    """Where the caption of an image is written."""
    return image.with_suffix(CAPTION_SUFFIXES[0])


def existing_caption(image: Path) -> Path | None:
    """The caption file that an image has, or None."""
    for suffix in CAPTION_SUFFIXES:
        file = image.with_suffix(suffix)
        if file.is_file():
            return file
    return None


def captioned_stems(folder: Path) -> set[str]:
    """The names, without suffixes, of a folder's files that are captions, whether there are images beside them or not.

    For all images of a folder it takes a tenth of the time of `existing_caption`.
    """
    with os.scandir(folder) as entries:
        parts = [os.path.splitext(entry.name) for entry in entries if entry.is_file()]  # noqa: PTH122 - see above
    return {stem for stem, suffix in parts if suffix in CAPTION_SUFFIXES}


def read_caption(image: Path) -> str | None:
    """The caption of an image without surrounding white space, "" for an empty file, None without a file.

    UTF-8 with or without a byte order mark; other bytes are read as Latin-1. Raises InputError if it cannot be read.
    """
    data = caption_bytes(image)
    return None if data is None else decode_text(data).strip()


def caption_bytes(image: Path) -> bytes | None:
    """Return the content of an image's caption file, None without a file. Raises InputError if it cannot be read.

    Cached until the file changes: the Dataset tab asks for all captions at every click.
    """
    for suffix in CAPTION_SUFFIXES:
        file = image.with_suffix(suffix)
        try:
            return _read_bytes(file)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            continue
        except OSError as error:
            raise InputError(
                f"The caption {file.name!r} cannot be read: {error.strerror}.", "Check its permissions.", code="caption"
            ) from error
    return None


@cached_by_stamp(maxsize=100_000)
def _read_bytes(file: Path) -> bytes:
    return file.read_bytes()


def decode_text(data: bytes) -> str:
    """Text of unknown encoding: UTF-16 with its mark, UTF-8 with or without one, else Latin-1, which always reads."""
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def write_caption(image: Path, text: str) -> Path:
    """Write the caption of an image atomically as UTF-8 and return its file; the line ends nowhere in between."""
    file = caption_file(image)
    write_text(file, " ".join(text.split()))
    return file
