"""Infer the trigger word of a dataset that was captioned for another trainer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from lora_studio.dataset.captions.text import split_tags

COMMON_SHARE = 0.8  # of the captions, that begin with the trigger word
MIN_CAPTIONS = 3  # with fewer, a common beginning may be chance
_MADE_UP = re.compile(r"(?=.*[a-z])(?=.*[\d_-])[\w-]{4,24}", re.IGNORECASE | re.ASCII)  # saria_zelda, ohwx7
_COUNT_TAG = re.compile(r"\d+\+?_?(girl|boy|other)s?", re.IGNORECASE)
_GENERIC_NAME = re.compile(r"(data)?set|data|images?|imgs?|my|new|photos?|pics?|pictures?|train(ing)?", re.IGNORECASE)


def infer_trigger(captions: Iterable[str], set_names: Iterable[str]) -> str:
    """Return the trigger word that captions or set folders suggest; "" if they suggest none.

    It is what most captions begin with, a tag or the first word of a sentence, if it shares a word with the name of a
    set (`10_saria` or only `saria`) or is made up, like saria_zelda. Without captions it is the name of the only set,
    which kohya's tools take for the caption.
    """
    texts = [caption for caption in captions if split_tags(caption)]
    names = {name.strip() for name in (re.sub(r"^\d+_", "", name) for name in set_names)}
    if not texts:
        return _name_of_only_set(names)
    if len(texts) < MIN_CAPTIONS:
        return ""
    tags = [split_tags(text) for text in texts]
    words_of_names = {word for name in names for word in _words(name) if not _GENERIC_NAME.fullmatch(word)}
    uses_underscores = any("_" in tag for text in tags for tag in text[1:])
    for beginnings in ([text[0] for text in tags], [text[0].split()[0] for text in tags]):
        found = _most_common(beginnings)
        if not found or _COUNT_TAG.fullmatch(found):
            continue
        is_made_up = _MADE_UP.fullmatch(found) and not ("_" in found and uses_underscores)
        if is_made_up or words_of_names & _words(found):
            return found
    return ""


def _name_of_only_set(names: set[str]) -> str:
    words = next(iter(names)).split() if len(names) == 1 else []
    is_name = len(words) in (1, 2) and not _GENERIC_NAME.fullmatch(words[0])  # "saria", or "saria woman"
    return words[0] if is_name else ""


def _most_common(beginnings: Sequence[str]) -> str:
    """Return the text that most of the beginnings are, ignoring case; "" if none is common enough."""
    (folded, count), *_ = Counter(text.casefold() for text in beginnings).most_common(1)
    return (
        next(text for text in beginnings if text.casefold() == folded) if count > COMMON_SHARE * len(beginnings) else ""
    )


def _words(text: str) -> set[str]:
    return {word for word in re.split(r"[\W_]+", text.casefold()) if word}
