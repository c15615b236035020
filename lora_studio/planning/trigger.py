"""Checks of a trigger word against the guide's rules; they warn and never forbid."""

from __future__ import annotations

import re

from lora_studio.guide import STYLE_TERMS, TRIGGER_RULES
from lora_studio.planning.cautions import Caution

MIN_LENGTH, MAX_LENGTH = 4, 24
_RULES = {rule.code: rule for rule in TRIGGER_RULES}


def check_trigger(word: str) -> list[Caution]:
    """Return a warning for each of the guide's rules that a trigger word breaks."""
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
    if word.lower() in STYLE_TERMS or re.sub(r"[\s-]+", "_", word.lower()) in STYLE_TERMS:
        found.append(_caution("trigger_style", f"{word!r} is a style term that the base already knows."))
    elif re.fullmatch(r"[a-z]+", word, re.IGNORECASE | re.ASCII):
        found.append(_caution("trigger_unique", f"{word!r} is a plain word that the base may already know."))
    if not MIN_LENGTH <= len(word) <= MAX_LENGTH:
        found.append(_caution("trigger_memorable", f"{word!r} has {len(word)} characters."))
    return found


def _caution(code: str, message: str) -> Caution:
    rule = _RULES[code]
    return Caution(code=code, message=f"{message} {rule.rule}", why=rule.why)
