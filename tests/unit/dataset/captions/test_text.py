"""Caption text and caption files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.dataset.captions.text import (
    caption_file,
    join_tags,
    read_caption,
    split_tags,
    with_trigger,
    without_tags,
    write_caption,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
words = st.sampled_from(["saria_zelda", "ohwx", "cat", "style-2", "two words", "ünïcode", "(x)", "1girl"])
phrases = st.sampled_from(
    ["cat ears", "a cat, on a mat", "SARIA_ZELDA", "ohwx woman", "photo of saria_zelda", "cat", ":d", "1girl", ""]
)
captions = st.lists(phrases | words, max_size=6).map(", ".join)


@given(texts)
def test_splitting_and_joining_are_inverse(text: str) -> None:
    tags = split_tags(text)
    assert split_tags(join_tags(tags)) == tags
    assert all(tag == " ".join(tag.split()) and tag and "," not in tag for tag in tags)
    assert len(set(tags)) == len(tags)


def test_a_sentence_with_commas_survives() -> None:
    sentence = "A red car, parked by the sea, at dusk (8 p.m.); it's quiet."
    assert join_tags(split_tags(sentence)) == sentence


def test_tags_are_normalized_and_repetitions_removed() -> None:
    assert split_tags("  long   hair,smile ,, long hair,\n:D, :d") == ["long hair", "smile", ":D", ":d"]


@given(captions | texts, words | texts)
def test_with_trigger_puts_the_word_first_and_only_once(caption: str, trigger: str) -> None:
    once = with_trigger(caption, trigger)
    assert with_trigger(once, trigger) == once
    wanted = split_tags(trigger)
    if len(wanted) == 1:
        assert once.startswith(wanted[0])
        assert [tag.casefold() for tag in split_tags(once)[1:]].count(wanted[0].casefold()) == 0


@given(captions, words)
def test_with_trigger_keeps_other_tags(caption: str, trigger: str) -> None:
    kept = split_tags(with_trigger(caption, trigger))
    for tag in split_tags(caption):
        if trigger.casefold() not in tag.casefold():
            assert tag in kept


@pytest.mark.parametrize(
    ("caption", "trigger", "expected"),
    [
        ("smile, hat", "saria_zelda", "saria_zelda, smile, hat"),
        ("smile, saria_zelda, hat", "saria_zelda", "saria_zelda, smile, hat"),
        ("Saria_Zelda, smile, saria_zelda", "saria_zelda", "saria_zelda, smile"),
        ("a photo of saria_zelda, smiling", "saria_zelda", "saria_zelda, a photo of, smiling"),
        ("cat ears, smile", "cat", "cat ears, smile"),
        ("smile, cat, cat ears", "cat", "cat, smile, cat ears"),
        ("ohwx woman, smiling", "ohwx", "ohwx woman, smiling"),
        ("concatenate, smile", "cat", "cat, concatenate, smile"),
        ("smile, b_1", "a_1, b_1", "a_1, b_1, smile"),
        ("", "ohwx", "ohwx"),
        ("a,  b", "", "a, b"),
        ("A dog, asleep.", "ohwx", "ohwx, A dog, asleep."),
    ],
)
def test_with_trigger_examples(caption: str, trigger: str, expected: str) -> None:
    assert with_trigger(caption, trigger) == expected


@pytest.mark.parametrize(
    "name", ["a.png", "-rf.png", "quo'te\".png", "new\nline.png", "ünï 猫.webp", "v1.2.jpg", "<img src=x>.png"]
)
def test_writes_and_reads_beside_any_file_name(tmp_path: Path, name: str) -> None:
    image = tmp_path / name
    assert read_caption(image) is None
    written = write_caption(image, "tag one,  A sentence, with commas.\n second line ")
    assert written == caption_file(image) == image.with_suffix(".txt")
    assert read_caption(image) == "tag one, A sentence, with commas. second line"
    assert [path.name for path in tmp_path.iterdir()] == [written.name]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("café, 猫".encode(), "café, 猫"),
        (b"\xef\xbb\xbf" + "café\r\n".encode(), "café"),
        ("café".encode("latin-1"), "café"),
        ("café".encode("utf-16"), "café"),
        (b"", ""),
    ],
)
def test_decodes_common_encodings(tmp_path: Path, data: bytes, expected: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert read_caption(tmp_path / "a.png") == expected


def test_txt_takes_precedence_over_caption(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    (tmp_path / "a.caption").write_text("old")
    assert read_caption(image) == "old"
    (tmp_path / "a.txt").write_text("new")
    assert read_caption(image) == "new"


@pytest.mark.parametrize(
    ("caption", "unwanted", "expected"),
    [
        ("inkstamp_hc, black, White, black cat", ["white", "Black"], "inkstamp_hc, black cat"),
        ("a  sentence, as it is", ["white"], "a  sentence, as it is"),
        ("white", ["white"], ""),
        ("", ["white"], ""),
    ],
)
def test_without_tags_removes_whole_tags(caption: str, unwanted: list[str], expected: str) -> None:
    assert without_tags(caption, unwanted) == expected
