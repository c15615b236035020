"""Lint: each finding is about the right captions, and its fix removes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lora_studio.dataset.captions.edit_history import CaptionHistory
from lora_studio.dataset.captions.edits import plan_edit
from lora_studio.dataset.captions.lint import RULES, Finding, find_fix, lint, normalise_separators, truncate
from lora_studio.dataset.captions.text import read_caption, split_tags
from lora_studio.dataset.captions.token_count import MAX_TOKENS, count_tokens, truncation_point
from lora_studio.errors import InputError

LONG = ", ".join(f"quite a long tag {number}" for number in range(30))


def folder_of(tmp_path: Path, *captions: str | bytes | None) -> list[Path]:
    images = []
    for number, caption in enumerate(captions):
        image = tmp_path / f"{number:02d}.png"
        image.write_bytes(b"")
        if caption is not None:
            image.with_suffix(".txt").write_bytes(caption if isinstance(caption, bytes) else caption.encode())
        images.append(image)
    return images


def about(findings: list[Finding]) -> dict[str, list[str]]:
    return {finding.code: [image.stem.lstrip("0") or "0" for image in finding.images] for finding in findings}


@pytest.mark.parametrize(
    ("code", "caption", "expected"),
    [
        ("empty", None, "ohwx"),
        ("empty", " , ", "ohwx"),
        ("not_utf8", "ohwx, café".encode("latin-1"), "ohwx, café"),
        ("not_utf8", "\ufeffohwx, cat".encode(), "ohwx, cat"),
        ("not_utf8", "ohwx, cat".encode("utf-16"), "ohwx, cat"),
        ("untidy", "ohwx,, cat , dog,", "ohwx, cat, dog"),
        ("duplicate_tags", "ohwx, cat, Cat, dog", "ohwx, cat, dog"),
        ("trigger_missing", "cat", "ohwx, cat"),
        ("trigger_doubled", "ohwx, cat, ohwx", "ohwx, cat"),
        ("trigger_misplaced", "cat, OHWX", "ohwx, cat"),
        ("contradictory:day/night:night", "ohwx, day, night", "ohwx, day"),
        ("contradictory:open eyes/closed eyes:closed eyes", "ohwx, open_eyes, closed_eyes", "ohwx, open_eyes"),
        ("too_long", f"ohwx, {LONG}", None),
    ],
)
def test_finds_and_fixes(tmp_path: Path, code: str, caption: str | None, expected: str | None) -> None:
    images = folder_of(tmp_path, "ohwx, fine", caption)
    finding, fix = find_fix(lint(images, "ohwx"), code)
    assert finding.images == [images[1]]
    CaptionHistory.of(tmp_path).apply(plan_edit(images, fix.edit))
    assert read_caption(images[0]) == "ohwx, fine"
    if expected is not None:
        assert images[1].with_suffix(".txt").read_bytes() == expected.encode()
    assert finding.code not in about(lint(images, "ohwx"))


def test_clean_captions_have_no_findings(tmp_path: Path) -> None:
    assert lint(folder_of(tmp_path, "ohwx, cat", "ohwx, a dog, on a mat"), "ohwx") == []


def test_without_a_trigger_word_it_is_not_checked(tmp_path: Path) -> None:
    assert lint(folder_of(tmp_path, "cat", "dog"), "") == []


def test_finds_common_tags_rare_tags_and_identical_captions(tmp_path: Path) -> None:
    images = folder_of(tmp_path, *["ohwx, hat, tree"] * 5, "ohwx, hat, car", "ohwx, a very long sentence about a car")
    findings = {finding.code: finding for finding in lint(images, "ohwx")}
    assert set(findings) == {"common_tag", "rare_tag", "identical"}
    assert findings["common_tag"].tags == {"hat": 6}
    assert findings["rare_tag"].tags == {"car": 1}
    assert findings["rare_tag"].images == [images[5]]
    assert findings["identical"].images == images[:5]
    assert findings["identical"].fixes == []
    with pytest.raises(InputError) as caught:
        find_fix(findings.values(), "identical")
    assert caught.value.code == "unknown_fix"


def test_offers_no_removal_of_a_common_tag_before_the_trigger_word_is_known(tmp_path: Path) -> None:
    images = folder_of(tmp_path, *(f"saria_zelda, hat, tree {index}" for index in range(5)))
    common = {finding.about: finding for finding in lint(images) if finding.code == "common_tag"}
    assert set(common) == {"saria_zelda", "hat"}
    assert [finding.fixes for finding in common.values()] == [[], []]
    found = [finding for finding in lint(images, "saria_zelda") if finding.code == "common_tag"]
    assert [fix.key for finding in found for fix in finding.fixes] == ["common_tag:hat"]


def test_one_of_several_fixes_must_be_named_by_its_key(tmp_path: Path) -> None:
    findings = lint(folder_of(tmp_path, "day, night"))
    with pytest.raises(InputError, match="contradictory:day/night:day, contradictory:day/night:night"):
        find_fix(findings, "contradictory")


words = st.sampled_from(["cat", "Ünïcode", "a long phrase of words", "(x:1.2)", "😀", "tag,", ""])


@given(st.lists(words, max_size=60).map(", ".join))
@example("cat, " * 7 + "Ünïcode, " * 6 + "(x:1.2), " * 4 + "Ünïcode")
def test_a_truncated_caption_fits_the_text_encoders(caption: str) -> None:
    short = truncate(caption)
    assert count_tokens(short) <= MAX_TOKENS
    assert ", ".join(split_tags(caption)).startswith(short)
    assert truncation_point(short) == len(short)
    assert count_tokens(caption[: truncation_point(caption)]) <= MAX_TOKENS


@given(st.text(", a\n", max_size=20))
def test_removing_stray_separators_keeps_every_tag(caption: str) -> None:
    assert normalise_separators(normalise_separators(caption)) == normalise_separators(caption)
    assert split_tags(normalise_separators(caption)) == split_tags(caption)


def test_every_rule_has_a_title_and_a_reason() -> None:
    assert all(rule.title and rule.why.endswith(".") for rule in RULES.values())
