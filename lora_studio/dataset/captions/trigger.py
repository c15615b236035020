"""Infer the trigger word of a dataset that was captioned for another trainer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from lora_studio.dataset.captions.text import split_tags
from lora_studio.dataset.captions.token_count import count_tokens
from lora_studio.guide import STYLE_TERMS

COMMON_SHARE = 0.8  # of the captions, that begin with the trigger word
MIN_CAPTIONS = 3  # with fewer, a common beginning may be chance
_MADE_UP = re.compile(r"(?=.*[a-z])(?=.*[\d_-])[\w-]{4,24}", re.IGNORECASE | re.ASCII)  # saria_zelda, ohwx7
_PLAIN_WORD = re.compile(r"[a-z]{4,24}", re.IGNORECASE)
_BOORU_TAGS = {"absurdres", "greyscale", "highres", "lowres"}  # beside the guide's style terms
_COUNT_TAG = re.compile(r"\d+\+?_?(girl|boy|other)s?", re.IGNORECASE)
_GENERIC_NAME = re.compile(r"(data)?set|data|images?|imgs?|my|new|photos?|pics?|pictures?|train(ing)?", re.IGNORECASE)


def infer_trigger(captions: Iterable[str], set_names: Iterable[str]) -> str:
    """Return the trigger word that captions or set folders suggest; "" if they suggest none.

    It is what most captions begin with, a tag or the first word of a sentence, if it shares a word with the name of a
    set (`10_saria` or only `saria`) or is made up, like saria_zelda. A plain word that all captions begin with counts
    as made up if CLIP's vocabulary lacks it, like saria. Without captions it is the name of the only set, which
    kohya's tools take for the caption.
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
        if (
            is_made_up
            or words_of_names & _words(found)
            or (len(set(map(str.casefold, beginnings))) == 1 and _is_rare(found))
        ):
            return found
    return ""


def common_first_tag(captions: Iterable[str]) -> str:
    """Return the tag that all captions begin with, which may be their trigger word; "" if there is none."""
    firsts = [tags[0] for caption in captions if (tags := split_tags(caption))]
    if len(firsts) < MIN_CAPTIONS or len(set(map(str.casefold, firsts))) > 1 or _COUNT_TAG.fullmatch(firsts[0]):
        return ""
    return firsts[0]


def _is_rare(word: str) -> bool:
    """Return whether a plain word is none that CLIP, and so the base model, knows as one token."""
    known = STYLE_TERMS | _BOORU_TAGS
    return bool(_PLAIN_WORD.fullmatch(word)) and word.casefold() not in known and count_tokens(word) > 1


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
