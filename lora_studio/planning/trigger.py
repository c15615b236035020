"""Checks of a trigger word against the guide's rules, and proposals for one; the checks warn and never forbid."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator

from lora_studio.dataset.captions.token_count import clip_tokenizer
from lora_studio.guide import QUALITY_TAGS, STYLE_TERMS, TRIGGER_RULES
from lora_studio.planning.cautions import Caution
from lora_studio.planning.known_tags import known_tags
from lora_studio.plurals import format_count

MIN_LENGTH, MAX_LENGTH = 4, 24
MIN_WORD = 3  # letters; shorter parts say nothing about what the base knows
# CLIP's vocabulary is sorted by how often its words were seen. Tokens from here on, like ohwx, are rare enough to use.
RARE_TOKEN = 47_000
PROPOSED_TOKENS = range(2, 5)  # one token may be a name that the base knows, many lengthen each prompt
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_RULES = {rule.code: rule for rule in TRIGGER_RULES}


def check_trigger(word: str, tags: Collection[str] | None = None) -> list[Caution]:
    """Return a warning for each of the guide's rules that a trigger word breaks.

    `tags` are those that the base may know, by default those of the taggers on this machine.
    """
    word = word.strip()
    if not word:
        return [
            Caution(
                code="trigger_missing",
                message="No trigger word is set. The guide suggests one, like saria_zelda.",
                why=_RULES["trigger_consistent"].why,
            )
        ]
    found = []
    if not re.fullmatch(r"\w+(-\w+)*", word, re.ASCII):
        found.append(_caution("trigger_characters", f"{word!r} has characters that prompts split or interpret."))
    if _has_style_term(word):
        found.append(_caution("trigger_style", f"{word!r} is a style term that the base already knows."))
    elif known := _what_is_known(word, known_tags() if tags is None else tags):
        found.append(_caution("trigger_unique", f"{word!r} {known}."))
    if not MIN_LENGTH <= len(word) <= MAX_LENGTH:
        found.append(_caution("trigger_memorable", f"{word!r} has {format_count(len(word), 'character')}."))
    return found


def trigger_tokens(word: str) -> list[str]:
    """Return the pieces that both of SDXL's text encoders read a word as; they share CLIP's vocabulary."""
    return [token.removesuffix("</w>") for token in clip_tokenizer().encode(word.strip()).tokens]


def propose_triggers(hint: str, count: int = 3) -> list[str]:
    """Return words that break no rule: the first letters of `hint`, then syllables. A hint has always the same ones."""
    rng = random.Random(hint)
    stem = re.sub(r"[^a-z]", "", hint.lower())[:3]
    proposals: list[str] = []
    for word in _made_up_words(stem, rng):
        if word not in proposals and not check_trigger(word) and len(trigger_tokens(word)) in PROPOSED_TOKENS:
            proposals.append(word)
        if len(proposals) == count:
            break
    return proposals


def _made_up_words(stem: str, rng: random.Random) -> Iterator[str]:
    while True:
        syllables = (rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(2))
        yield f"{stem}{''.join(syllables)}{rng.choice(_CONSONANTS)}"


def _has_style_term(word: str) -> bool:
    plain = word.lower()
    return plain in STYLE_TERMS or re.sub(r"[\s-]+", "_", plain) in STYLE_TERMS or plain.endswith("_style")


def _what_is_known(word: str, tags: Collection[str]) -> str:
    """Return what the base may know of a word, as the end of a sentence; empty if nothing."""
    spaced = re.sub(r"[_\s]+", " ", word.lower()).strip()
    if spaced in QUALITY_TAGS or re.fullmatch(r"score \d+( up)?|\d+(girl|boy|other)s?", spaced):
        return "is a tag for quality or number that most bases know"
    if spaced in tags:
        return "is a Danbooru tag, which anime bases were trained on"
    parts = re.findall(r"[a-z]+", word.lower())
    if not parts:
        return "has no letters, so that nothing sets it apart"
    encoded = {part: clip_tokenizer().encode(part).ids for part in parts if len(part) >= MIN_WORD}
    names = [part for part, ids in encoded.items() if len(ids) == 1 and ids[0] < RARE_TOKEN]
    if encoded and len(names) == len(encoded):
        verb = "is a word" if len(names) == 1 else "are words"
        return f"may be known to the base: {' and '.join(names)} {verb} of CLIP's vocabulary"
    if word.isascii() and word.isalpha() and len(next(iter(encoded.values()), [])) == 2:
        return "is a plain word that the base may already know"
    return ""


def _caution(code: str, message: str) -> Caution:
    rule = _RULES[code]
    return Caution(code=code, message=f"{message} {rule.rule}", why=rule.why)
