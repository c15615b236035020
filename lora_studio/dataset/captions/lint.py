"""Lint: what is wrong or doubtful in a folder's captions, each finding with its mends.

Texts alone are looked at, never the pictures. A mend is an edit like any other: it can be looked at before, and undone.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from lora_studio.dataset.captions import edits
from lora_studio.dataset.captions.contradictions import contradictions, normalized_tag
from lora_studio.dataset.captions.edits import Edit
from lora_studio.dataset.captions.text import (
    caption_bytes,
    decode_text,
    deduplicated,
    join_tags,
    split_tags,
    with_trigger,
    without_tags,
    word_pattern,
)
from lora_studio.dataset.captions.token_count import MAX_TOKENS, count_tokens, truncation_point
from lora_studio.errors import InputError

COMMON_SHARE = 0.8  # of the images with a caption: a tag above it says nothing about one of them
CACHED_TEXTS = 50_000  # texts
MAX_TAG_WORDS = 5  # what has more is a sentence, of which each is on one image
MIN_CAPTIONS = 5  # below them, shares and single tags say nothing


class Rule(NamedTuple):
    """What a finding is called, and why it matters."""

    title: str
    why: str


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "empty": Rule("No caption", "It trains the trigger word on everything in the picture; some trainers stop."),
        "trigger_missing": Rule("Trigger word missing", "What these pictures teach does not go to the trigger word."),
        "trigger_misplaced": Rule(
            "Trigger word not first", "Shuffling and dropping tags keep the first tag in place; it should be this one."
        ),
        "trigger_doubled": Rule("Trigger word doubled", "Once is enough; a second one takes tokens."),
        "contradictory": Rule("Tags that contradict", "One of them is wrong, and both are learned."),
        "too_long": Rule(
            f"Longer than {MAX_TOKENS} tokens", "The text encoders read no more; what comes after is not learned."
        ),
        "not_utf8": Rule("Not UTF-8", "Other trainers read it wrong or stop; Latin-1 and byte order marks do that."),
        "duplicate_tags": Rule("A tag twice", "It takes tokens and says nothing more."),
        "untidy": Rule("Stray commas or spaces", "An empty tag is a token that says nothing."),
        "common_tag": Rule(
            f"On more than {COMMON_SHARE:.0%} of the images",
            "Taken out, the trigger word takes it in; left in, it stays a tag to choose.",
        ),
        "rare_tag": Rule(
            "On one image only", "One picture teaches a tag badly; it may be a typing error or a tagger's guess."
        ),
        "identical": Rule("The same caption", "Unlike pictures with one text: nothing says what differs."),
    }
)


@dataclass(frozen=True)
class Fix:
    """One way to put it right. `key` names it within the lint: the finding's code, with a tag behind a colon."""

    key: str
    label: str
    edit: Edit


@dataclass(frozen=True)
class Finding:
    """One thing to look at, with the images it is about, the tags it is about and how many images have each.

    `key` is its code, with what it is about behind a colon where there may be several of a code.
    """

    code: str
    message: str
    images: list[Path]
    tags: dict[str, int] = field(default_factory=dict)
    fixes: list[Fix] = field(default_factory=list)
    about: str = ""

    @property
    def key(self) -> str:
        """Its name within the lint."""
        return f"{self.code}:{self.about}" if self.about else self.code

    @property
    def rule(self) -> Rule:
        """Its title and why it matters."""
        return RULES[self.code]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "code": self.code,
            "title": self.rule.title,
            "message": self.message,
            "why": self.rule.why,
            "images": [str(image) for image in self.images],
            "tags": self.tags,
            "mends": [{"key": fix.key, "label": fix.label} for fix in self.fixes],
        }


class Caption(NamedTuple):
    """An image's caption as the lint reads it: its text ("" without a file), its tags, and whether it is UTF-8.

    `has_stray_separators`: empty tags or needless spaces; `repeated_tags`: tags, in lower case, that it contains more
    than once.
    """

    image: Path
    text: str
    tags: tuple[str, ...]
    utf8: bool
    has_stray_separators: bool
    repeated_tags: tuple[str, ...]

    @classmethod
    def of(cls, image: Path) -> Caption:
        """Read an image's caption; raises InputError if it cannot be read."""
        data = caption_bytes(image)
        text = "" if data is None else decode_text(data).strip()
        return cls(image, text, _parsed(text)[1], data is None or edits.is_plain_utf8(data), *_text_flaws(text))


def lint(images: Iterable[Path], trigger: str = "") -> list[Finding]:
    """Look at the captions of these images, what matters most first; without a trigger word, nothing is said of it.

    Raises InputError for a caption that cannot be read.
    """
    return lint_captions([Caption.of(image) for image in images], trigger)


def lint_captions(captions: Sequence[Caption], trigger: str = "") -> list[Finding]:
    """What `lint` says of captions that were read before."""
    found: list[Finding] = []
    for check in (
        _check_files,
        _check_texts,
        _check_trigger,
        _check_length,
        _check_contradictions,
        _check_frequencies,
        _check_identical,
    ):
        found += check(captions, trigger)
    order = list(RULES)
    return sorted(found, key=lambda finding: order.index(finding.code))


def find_fix(findings: Iterable[Finding], key: str) -> tuple[Finding, Fix]:
    """The mend of that key, or of that code if it has one alone; raises InputError with those that there are."""
    fixes = [(finding, fix) for finding in findings for fix in finding.fixes]
    for chosen in (lambda fix: fix.key == key, lambda fix: fix.key.partition(":")[0] == key):
        matching = [(finding, fix) for finding, fix in fixes if chosen(fix)]
        if len(matching) == 1:
            return matching[0]
    known = sorted({fix.key for _, fix in fixes if fix.key.partition(":")[0] == key} or {m.key for _, m in fixes})
    raise InputError(
        f"There is no mend {key!r} for these captions.",
        f"Choose one of {', '.join(known)}." if known else "There is nothing to mend.",
        code="mend",
    )


def normalize_separators(caption: str) -> str:
    """The caption without empty tags and needless spaces; a tag that stands there twice stays."""
    return join_tags(part for part in (" ".join(text.split()) for text in caption.split(",")) if part)


def truncate(caption: str) -> str:
    """The caption without its last tags, until the text encoders read all of it; one long sentence is cut."""
    tags = split_tags(caption)
    while len(tags) > 1 and count_tokens(join_tags(tags)) > MAX_TOKENS:
        tags.pop()
    text = join_tags(tags)
    return text[: truncation_point(text)].strip()


# What is said of a text alone is remembered: after an edit, most captions are what they were.
@lru_cache(maxsize=CACHED_TEXTS)
def _parsed(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(" ".join(part.split()) for part in text.split(",")), tuple(split_tags(text))


@lru_cache(maxsize=CACHED_TEXTS)
def _text_flaws(text: str) -> tuple[bool, tuple[str, ...]]:
    """Whether a text is untidy, and its tags that are there more than once, in lower case."""
    parts, tags = _parsed(text)
    repeated_tags: tuple[str, ...] = ()
    if len(deduplicated(tags)) < sum(map(bool, parts)):
        counts = Counter(part.casefold() for part in parts if part)
        repeated_tags = tuple(tag for tag, count in counts.items() if count > 1)
    return bool(text) and normalize_separators(text) != text, repeated_tags


@lru_cache(maxsize=CACHED_TEXTS)
def _contradicting(tags: tuple[str, ...]) -> list[tuple[str, ...]]:
    return list(contradictions(tags))


@lru_cache(maxsize=CACHED_TEXTS)
def _trigger_code(text: str, trigger: str) -> str:
    """The code of what is wrong with the trigger word in a caption that is not empty; "" if it is right."""
    words = [word_pattern(word) for word in split_tags(trigger)]
    parts, tags = _parsed(text)
    if not all(any(word.search(tag) for tag in tags) for word in words):
        return "trigger_missing"
    mended = split_tags(with_trigger(text, trigger))
    if _count_matches(words, mended) < _count_matches(words, parts):
        return "trigger_doubled"
    if split_tags(join_tags(mended).casefold()) != split_tags(text.casefold()):
        return "trigger_misplaced"
    return ""


def _images_where(captions: Sequence[Caption], wanted: Callable[[Caption], bool]) -> list[Path]:
    return [caption.image for caption in captions if wanted(caption)]


def _finding(code: str, images: list[Path], flaw: str, *fixes: Fix) -> Iterator[Finding]:
    """A finding about these captions, whose message is their number and the flaw; none without any."""
    if images:
        yield Finding(code, f"{_captions(len(images))} {flaw}.", images, fixes=list(fixes))


def _captions(count: int) -> str:
    return "1 caption" if count == 1 else f"{count:,} captions"


def _check_files(captions: Sequence[Caption], trigger: str) -> Iterator[Finding]:
    empty = _images_where(captions, lambda caption: not caption.tags)
    put = Edit(f"Put {trigger} where there was no caption", lambda text: text if split_tags(text) else trigger)
    fixes = [Fix("empty", f"Write {trigger} alone", put)] if trigger else []
    if empty:
        number = "1 image has" if len(empty) == 1 else f"{len(empty):,} images have"
        yield Finding("empty", f"{number} no caption, or an empty one.", empty, fixes=fixes)
    yield from _finding(
        "not_utf8",
        _images_where(captions, lambda caption: not caption.utf8),
        "in Latin-1, UTF-16 or with a byte order mark",
        Fix("not_utf8", "Write as UTF-8", Edit("Wrote captions as UTF-8", lambda text: text, rewrite=True)),
    )


def _check_texts(captions: Sequence[Caption], trigger: str) -> Iterator[Finding]:
    yield from _finding(
        "untidy",
        _images_where(captions, lambda caption: caption.has_stray_separators),
        "with stray commas, line breaks or spaces",
        Fix("untidy", "Tidy up", Edit("Tidied commas and spaces", normalize_separators)),
    )
    repeated_tags = Counter(tag for caption in captions for tag in caption.repeated_tags)
    for finding in _finding(
        "duplicate_tags",
        _images_where(captions, lambda caption: bool(caption.repeated_tags)),
        "with a tag more than once",
        Fix(
            "duplicate_tags",
            "Keep the first of each",
            Edit("Removed doubled tags", lambda text: join_tags(deduplicated(split_tags(text)))),
        ),
    ):
        yield Finding(finding.code, finding.message, finding.images, dict(repeated_tags.most_common()), finding.fixes)


def _check_trigger(captions: Sequence[Caption], trigger: str) -> Iterator[Finding]:
    """Each caption is in one of three findings at most; where several trigger words are meant, all must be there."""
    if not split_tags(trigger):
        return
    flawed: dict[str, list[Path]] = defaultdict(list)
    for caption in captions:
        if caption.tags and (code := _trigger_code(caption.text, trigger)):
            flawed[code].append(caption.image)
    put = Edit(f"Put {trigger} first", lambda text: with_trigger(text, trigger) if split_tags(text) else text)
    for code, where in (
        ("trigger_missing", f"without {trigger}"),
        ("trigger_doubled", f"with {trigger} more than once"),
        ("trigger_misplaced", f"with {trigger} further behind"),
    ):
        yield from _finding(code, flawed[code], where, Fix(code, "Put it first, once", put))


def _count_matches(words: Iterable[re.Pattern[str]], tags: Iterable[str]) -> int:
    return sum(len(word.findall(tag)) for tag in tags for word in words)


def _check_length(captions: Sequence[Caption], trigger: str) -> Iterator[Finding]:
    # A token is a character or more: most captions need not be counted.
    yield from _finding(
        "too_long",
        _images_where(
            captions, lambda caption: len(caption.text) > MAX_TOKENS and count_tokens(caption.text) > MAX_TOKENS
        ),
        f"with more than {MAX_TOKENS} tokens",
        Fix("too_long", "Take out what is not read", Edit(f"Shortened to {MAX_TOKENS} tokens", truncate)),
    )


def _check_contradictions(captions: Sequence[Caption], trigger: str) -> Iterator[Finding]:
    groups: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for caption in captions:
        for group in _contradicting(caption.tags):
            groups[group].append(caption.image)
    for group, images in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        about = "/".join(group)
        fixes = [Fix(f"contradictory:{about}:{tag}", f"Remove {tag}", _remove_tag(tag)) for tag in group]
        message = f"{_captions(len(images))} with {' and '.join(group)}."
        yield Finding("contradictory", message, images, fixes=fixes, about=about)


def _remove_tag(tag: str) -> Edit:
    """Removes a tag in plain form, with spaces or underscores."""
    return Edit(f"Removed {tag}", lambda text: without_tags(text, {tag, tag.replace(" ", "_")}))


def _check_frequencies(captions: Sequence[Caption], trigger: str) -> Iterator[Finding]:
    with_text = [caption for caption in captions if caption.tags]
    if len(with_text) < MIN_CAPTIONS:
        return
    holding: dict[str, list[Path]] = defaultdict(list)
    names: dict[str, str] = {}
    for caption in with_text:
        for tag in deduplicated(tag for tag in caption.tags if len(tag.split()) <= MAX_TAG_WORDS):
            holding[tag.casefold()].append(caption.image)
            names.setdefault(tag.casefold(), tag)
    words = [word_pattern(word) for word in split_tags(trigger)]
    holding = {tag: images for tag, images in holding.items() if not any(word.search(tag) for word in words)}
    common = {tag for tag, images in holding.items() if len(images) > COMMON_SHARE * len(with_text)}
    for tag in sorted(common, key=lambda tag: (-len(holding[tag]), tag)):
        images, name = holding[tag], names[tag]
        yield Finding(
            "common_tag",
            f"{name}: on {len(images):,} of {len(with_text):,} captioned images. Is it always so?",
            images,
            {name: len(images)},
            [Fix(f"common_tag:{name}", "Leave it to the trigger word", edits.remove([name]))],
            about=name,
        )
    rare = sorted(names[tag] for tag, images in holding.items() if len(images) == 1)
    if rare:
        images = list(dict.fromkeys(holding[tag.casefold()][0] for tag in rare))
        yield Finding(
            "rare_tag",
            f"{len(rare):,} {'tag' if len(rare) == 1 else 'tags'} on one image each.",
            images,
            dict.fromkeys(rare, 1),
            [Fix("rare_tag", "Remove them all" if len(rare) > 1 else "Remove it", edits.remove(rare))],
        )


def _check_identical(captions: Sequence[Caption], trigger: str) -> Iterator[Finding]:
    groups: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for caption in captions:
        if caption.tags:
            groups[tuple(normalized_tag(tag) for tag in caption.tags)].append(caption.image)
    shared = [images for images in groups.values() if len(images) > 1]
    images = [image for group in shared for image in group]
    if images:
        texts = "1 caption is" if len(shared) == 1 else f"{len(shared):,} captions are"
        yield Finding("identical", f"{texts} shared by {len(images):,} images.", images)
