"""Lint: find errors and doubtful places in a folder's captions, each with possible fixes.

Only the texts are checked, never the images. A fix is an edit like any other: it can be previewed and undone.
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
from lora_studio.dataset.captions.contradictions import contradictions, normalised_tag
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

COMMON_SHARE = 0.8  # of the captioned images; a tag on more of them does not distinguish any
CACHED_TEXTS = 50_000
MAX_TAG_WORDS = 5  # anything longer is a sentence, which is on one image by nature
MIN_CAPTIONS = 5  # with fewer, common and rare tags are not reported


class Rule(NamedTuple):
    """The title of a kind of finding, and why it matters."""

    title: str
    why: str


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "empty": Rule(
            "No caption", "The trigger word learns everything in the image; some trainers stop with an error."
        ),
        "trigger_missing": Rule("Trigger word missing", "What these images teach is not tied to the trigger word."),
        "trigger_misplaced": Rule(
            "Trigger word not first",
            "Caption shuffling and tag dropout keep the first tag in place; that should be the trigger word.",
        ),
        "trigger_doubled": Rule("Trigger word repeated", "Once is enough; each repetition uses up tokens."),
        "contradictory": Rule("Contradictory tags", "At least one of them is wrong, and all of them are learned."),
        "too_long": Rule(f"Longer than {MAX_TOKENS} tokens", "The text encoders truncate it; the rest is not learned."),
        "not_utf8": Rule(
            "Not UTF-8",
            "Other trainers misread the file or stop: it is in Latin-1 or UTF-16, or has a byte order mark.",
        ),
        "duplicate_tags": Rule("Repeated tag", "A repetition uses up tokens and adds nothing."),
        "untidy": Rule("Stray commas or spaces", "An empty tag is a token without meaning."),
        "common_tag": Rule(
            f"On more than {COMMON_SHARE:.0%} of the images",
            "Removed, it becomes part of what the trigger word learns; kept, it can be controlled in prompts.",
        ),
        "rare_tag": Rule(
            "Tags on a single image",
            "One image is not enough to teach a tag; it may be a typo or a wrong guess of the tagger.",
        ),
        "identical": Rule(
            "Identical captions", "Different images with the same caption: it does not say how they differ."
        ),
    }
)


@dataclass(frozen=True)
class Fix:
    """A way to fix a finding. `key` identifies it: the code of the finding, followed by `:` and a tag if needed."""

    key: str
    label: str
    edit: Edit


@dataclass(frozen=True)
class Finding:
    """A problem in some captions: its images, and the tags concerned with the number of images that have each.

    `about` distinguishes findings with the same code.
    """

    code: str
    message: str
    images: list[Path]
    tags: dict[str, int] = field(default_factory=dict)
    fixes: list[Fix] = field(default_factory=list)
    about: str = ""

    @property
    def key(self) -> str:
        """The identifier of the finding: its code, followed by `:` and `about` if there is one."""
        return f"{self.code}:{self.about}" if self.about else self.code

    @property
    def rule(self) -> Rule:
        """The title of this kind of finding, and why it matters."""
        return RULES[self.code]

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as values for JSON."""
        return {
            "code": self.code,
            "title": self.rule.title,
            "message": self.message,
            "why": self.rule.why,
            "images": [str(image) for image in self.images],
            "tags": self.tags,
            "fixes": [{"key": fix.key, "label": fix.label} for fix in self.fixes],
        }


class Caption(NamedTuple):
    """A caption as the checks need it: its text ("" without a file), its tags, and whether the file is plain UTF-8.

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
    """Check the captions of these images and return the findings, the most important first.

    Without a trigger word, it is not checked. Raises InputError for a caption that cannot be read.
    """
    return lint_captions([Caption.of(image) for image in images], trigger)


def lint_captions(captions: Sequence[Caption], trigger: str = "") -> list[Finding]:
    """Return the findings of `lint` for captions that were read before."""
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
    """Return the fix with that key, or the only fix of that code; raises InputError that lists the existing keys."""
    fixes = [(finding, fix) for finding in findings for fix in finding.fixes]
    exact = [(finding, fix) for finding, fix in fixes if fix.key == key]
    of_code = [(finding, fix) for finding, fix in fixes if fix.key.partition(":")[0] == key]
    for matching in (exact, of_code):
        if len(matching) == 1:
            return matching[0]
    known = sorted({fix.key for _, fix in fixes if fix.key.partition(":")[0] == key} or {m.key for _, m in fixes})
    raise InputError(
        f"There is no fix {key!r} for these captions.",
        f"Choose one of {', '.join(known)}." if known else "There is nothing to fix.",
        code="unknown_fix",
    )


def normalise_separators(caption: str) -> str:
    """Return the caption without empty tags and needless spaces; repeated tags are kept."""
    return join_tags(part for part in (" ".join(text.split()) for text in caption.split(",")) if part)


def truncate(caption: str) -> str:
    """Return the caption without as many last tags as needed to fit the text encoders; one long sentence is cut."""
    tags = split_tags(caption)
    while len(tags) > 1 and count_tokens(join_tags(tags)) > MAX_TOKENS:
        tags.pop()
    text = join_tags(tags)
    return text[: truncation_point(text)].strip()


# Checks that depend only on the text are cached: after an edit most captions are unchanged.
@lru_cache(maxsize=CACHED_TEXTS)
def _parsed(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(" ".join(part.split()) for part in text.split(",")), tuple(split_tags(text))


@lru_cache(maxsize=CACHED_TEXTS)
def _text_flaws(text: str) -> tuple[bool, tuple[str, ...]]:
    """Return whether a text has stray commas or spaces, and the tags, in lower case, that it repeats."""
    parts, tags = _parsed(text)
    repeated_tags: tuple[str, ...] = ()
    if len(deduplicated(tags)) < sum(map(bool, parts)):
        counts = Counter(part.casefold() for part in parts if part)
        repeated_tags = tuple(tag for tag, count in counts.items() if count > 1)
    return bool(text) and normalise_separators(text) != text, repeated_tags


@lru_cache(maxsize=CACHED_TEXTS)
def _contradicting(tags: tuple[str, ...]) -> list[tuple[str, ...]]:
    return list(contradictions(tags))


@lru_cache(maxsize=CACHED_TEXTS)
def _trigger_code(text: str, trigger: str) -> str:
    """Return the code of the finding about the trigger word in a caption that is not empty; "" if it is correct."""
    words = [word_pattern(word) for word in split_tags(trigger)]
    parts, tags = _parsed(text)
    if not all(any(word.search(tag) for tag in tags) for word in words):
        return "trigger_missing"
    fixed = split_tags(with_trigger(text, trigger))
    if _count_matches(words, fixed) < _count_matches(words, parts):
        return "trigger_doubled"
    if split_tags(join_tags(fixed).casefold()) != split_tags(text.casefold()):
        return "trigger_misplaced"
    return ""


def _images_where(captions: Sequence[Caption], wanted: Callable[[Caption], bool]) -> list[Path]:
    return [caption.image for caption in captions if wanted(caption)]


def _finding(code: str, images: list[Path], flaw: str, *fixes: Fix) -> Iterator[Finding]:
    """Yield a finding about these images if there are any; its message is their number and the flaw."""
    if images:
        yield Finding(code, f"{_captions(len(images))} {flaw}.", images, fixes=list(fixes))


def _captions(count: int) -> str:
    return "1 caption" if count == 1 else f"{count:,} captions"


def _check_files(captions: Sequence[Caption], trigger: str) -> Iterator[Finding]:
    empty = _images_where(captions, lambda caption: not caption.tags)
    edit = Edit(f"Wrote {trigger} where there was no caption", lambda text: text if split_tags(text) else trigger)
    fixes = [Fix("empty", f"Use {trigger} as the caption", edit)] if trigger else []
    if empty:
        number = "1 image has" if len(empty) == 1 else f"{len(empty):,} images have"
        yield Finding("empty", f"{number} no caption, or an empty one.", empty, fixes=fixes)
    yield from _finding(
        "not_utf8",
        _images_where(captions, lambda caption: not caption.utf8),
        "in Latin-1, UTF-16 or with a byte order mark",
        Fix("not_utf8", "Convert to UTF-8", Edit("Converted captions to UTF-8", lambda text: text, rewrite=True)),
    )


def _check_texts(captions: Sequence[Caption], trigger: str) -> Iterator[Finding]:
    yield from _finding(
        "untidy",
        _images_where(captions, lambda caption: caption.has_stray_separators),
        "with stray commas, line breaks or spaces",
        Fix("untidy", "Remove stray commas and spaces", Edit("Removed stray commas and spaces", normalise_separators)),
    )
    repeated_tags = Counter(tag for caption in captions for tag in caption.repeated_tags)
    for finding in _finding(
        "duplicate_tags",
        _images_where(captions, lambda caption: bool(caption.repeated_tags)),
        "with a tag more than once",
        Fix(
            "duplicate_tags",
            "Remove the repeated tags",
            Edit("Removed repeated tags", lambda text: join_tags(deduplicated(split_tags(text))), by_line=True),
        ),
    ):
        yield Finding(finding.code, finding.message, finding.images, dict(repeated_tags.most_common()), finding.fixes)


def _check_trigger(captions: Sequence[Caption], trigger: str) -> Iterator[Finding]:
    """Yield findings about the trigger word, at most one per caption; of several trigger words, all are required."""
    if not split_tags(trigger):
        return
    by_code: dict[str, list[Path]] = defaultdict(list)
    for caption in captions:
        if caption.tags and (code := _trigger_code(caption.text, trigger)):
            by_code[code].append(caption.image)
    edit = Edit(
        f"Put {trigger} first", lambda text: with_trigger(text, trigger) if split_tags(text) else text, by_line=True
    )
    for code, flaw, label in (
        ("trigger_missing", f"without {trigger}", "Add it at the start"),
        ("trigger_doubled", f"with {trigger} more than once", "Keep one, at the start"),
        ("trigger_misplaced", f"with {trigger} not first", "Move it to the start"),
    ):
        yield from _finding(code, by_code[code], flaw, Fix(code, label, edit))


def _count_matches(words: Iterable[re.Pattern[str]], tags: Iterable[str]) -> int:
    return sum(len(word.findall(tag)) for tag in tags for word in words)


def _check_length(captions: Sequence[Caption], trigger: str) -> Iterator[Finding]:
    # A token is at least one character: short captions need not be tokenized.
    yield from _finding(
        "too_long",
        _images_where(
            captions, lambda caption: len(caption.text) > MAX_TOKENS and count_tokens(caption.text) > MAX_TOKENS
        ),
        f"with more than {MAX_TOKENS} tokens",
        Fix("too_long", f"Shorten to {MAX_TOKENS} tokens", Edit(f"Shortened to {MAX_TOKENS} tokens", truncate)),
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
    """Return an edit that removes a normalised tag, written with spaces or underscores."""
    return Edit(f"Removed {tag}", lambda text: without_tags(text, {tag, tag.replace(" ", "_")}), by_line=True)


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
        question = "Is it true of all of them?" if words else "Is it the trigger word? Then enter it as such."
        yield Finding(
            "common_tag",
            f"{name}: on {len(images):,} of {len(with_text):,} captioned images. {question}",
            images,
            {name: len(images)},
            # Without a known trigger word, the tag may be the trigger word itself.
            [Fix(f"common_tag:{name}", f"Remove {name}", edits.remove([name]))] if words else [],
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
            [Fix("rare_tag", "Remove these tags" if len(rare) > 1 else f"Remove {rare[0]}", edits.remove(rare))],
        )


def _check_identical(captions: Sequence[Caption], trigger: str) -> Iterator[Finding]:
    groups: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for caption in captions:
        if caption.tags:
            groups[tuple(normalised_tag(tag) for tag in caption.tags)].append(caption.image)
    shared = [images for images in groups.values() if len(images) > 1]
    images = [image for group in shared for image in group]
    if images:
        texts = "1 caption is" if len(shared) == 1 else f"{len(shared):,} captions are"
        yield Finding("identical", f"{texts} shared by {len(images):,} images.", images)
