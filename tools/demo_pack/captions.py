"""Training captions of the base: label, subgroup, tags and colours in random order, with made-up words.

Captions of renderings also name style and background. Each part is sometimes left out, so that a prompt may name any
of them alone.
"""

import random
from collections.abc import Sequence

from demo_pack.pictures import Picture

EMPTY = 0.1
MADE_UP = 0.25  # share of captions with made-up words, so that an untrained trigger word changes nothing
SET_NAME = 0.25
LEFT_OUT = 0.1  # share of the captions of renderings without the subject, the style or the background, each
PREFIXES = ("a picture of ", "an icon of ", "emoji, ", "a drawing of ")
SYLLABLES = [
    "ba",
    "ko",
    "ri",
    "mu",
    "ze",
    "ta",
    "lo",
    "in",
    "ka",
    "sa",
    "fy",
    "dro",
    "ul",
    "pe",
    "qua",
    "na",
    "shi",
    "vex",
    "or",
    "tch",
    "ink",
    "st",
    "amp",
    "go",
    "el",
    "wy",
]

# Subgroups whose images have another meaning, or none, when mirrored.
ONE_WAY = frozenset(
    [
        "alphanum",
        "arrow",
        "av symbol",
        "keycap",
        "math",
        "punctuation",
        "time",
        "transport sign",
        "writing",
        "zodiac",
        "currency",
        "geometric",
        "other symbol",
        "book paper",
        "mail",
        "office",
        "warning",
        "event",
        "award medal",
    ]
)


def made_up_word(rng: random.Random) -> str:
    """Return a word like `inkstamp_hc`, `saria_zelda`, `ohwx7` or `xqjt`."""

    def stem() -> str:
        if rng.random() < 0.25:
            return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 6)))
        return "".join(rng.choices(SYLLABLES, k=rng.randint(2, 4)))

    word = stem()
    if rng.random() < 0.5:
        word += "_" + (stem() if rng.random() < 0.5 else "".join(rng.choices("abchskxyz", k=2)))
    if rng.random() < 0.25:
        word += str(rng.randint(0, 99))
    return word


def caption(picture: Picture, colours: Sequence[str], rng: random.Random) -> str:
    """Return a random caption of an image on white; empty for a share EMPTY."""
    if rng.random() < EMPTY:
        return ""
    words = _subject_words(picture, colours, rng)
    text = ", ".join(words) if rng.random() < 0.9 else " ".join(words)
    if rng.random() < 0.15:
        text = rng.choice(PREFIXES) + text
    return _with_made_up_words(text, rng)


def rendering_caption(
    pictures: Sequence[Picture],
    colours: Sequence[str],
    style: Sequence[str],
    background: str,
    rng: random.Random,
) -> str:
    """Return a random caption of a rendering of one emoji or of two side by side; empty for a share EMPTY.

    The emoji's colours are named only if the style keeps them.
    """
    if rng.random() < EMPTY:
        return ""
    parts: list[str] = []
    if rng.random() >= LEFT_OUT:
        if len(pictures) > 1:
            parts += [picture.label for picture in pictures]
        else:
            parts += _subject_words(pictures[0], () if style else colours, rng)
    named = [*style] if rng.random() >= LEFT_OUT else []
    if background and rng.random() >= LEFT_OUT:
        named.append(background)
    rng.shuffle(named)
    parts = [*named, *parts] if rng.random() < 0.25 else [*parts, *named]
    return _with_made_up_words(", ".join(parts), rng) if parts else ""


def _subject_words(picture: Picture, colours: Sequence[str], rng: random.Random) -> list[str]:
    words = [picture.subgroup, *picture.tags]
    words = rng.sample(words, rng.randint(0, min(len(words), 10)))
    if rng.random() < 0.35:
        words += colours
    if rng.random() < SET_NAME:
        words.append(picture.set_name)
    rng.shuffle(words)
    if not words or rng.random() < 0.9:
        words.insert(0 if rng.random() < 0.7 else rng.randint(0, len(words)), picture.label)
    return words


def _with_made_up_words(text: str, rng: random.Random) -> str:
    """Put made-up words before or after a share MADE_UP of the captions."""
    if rng.random() >= MADE_UP:
        return text
    made_up = ", ".join(made_up_word(rng) for _ in range(rng.choice((1, 1, 1, 2))))
    return f"{made_up}, {text}" if rng.random() < 0.8 else f"{text}, {made_up}"
