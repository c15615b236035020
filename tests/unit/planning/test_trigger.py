from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lora_studio.planning import known_tags
from lora_studio.planning.trigger import check_trigger, propose_triggers, trigger_tokens


@pytest.mark.parametrize("word", ["saria_zelda", "inkstamp_hc", "ohwx77", "mychar-v2", "zzqqx", "velnira"])
def test_good_trigger_words_give_no_warning(word: str) -> None:
    assert check_trigger(word) == []


@pytest.mark.parametrize(
    ("word", "codes"),
    [
        ("", ["trigger_missing"]),
        ("   ", ["trigger_missing"]),
        ("saria", ["trigger_unique"]),
        ("emma_watson", ["trigger_unique"]),
        ("1girl", ["trigger_unique"]),
        ("blue_hair", ["trigger_unique"]),
        ("van_gogh", ["trigger_unique"]),
        ("score_9", ["trigger_unique"]),
        ("best_quality", ["trigger_unique"]),
        ("1234", ["trigger_unique"]),
        ("trigger_word", ["trigger_unique"]),
        ("ghibli_style", ["trigger_style"]),
        ("Watercolor", ["trigger_style"]),
        ("oil painting", ["trigger_characters", "trigger_style"]),
        ("line-art", ["trigger_style"]),
        ("saria zelda", ["trigger_characters"]),
        ("saria_(zelda)", ["trigger_characters"]),
        ("a_1", ["trigger_memorable"]),
        ("the_very_long_name_of_my_character", ["trigger_unique", "trigger_memorable"]),
        ("画風_hc", ["trigger_characters"]),
        ("<lora:x>", ["trigger_characters"]),
    ],
)
def test_each_broken_rule_gives_a_warning_with_its_reason(word: str, codes: list[str]) -> None:
    found = check_trigger(word)
    assert [warning.code for warning in found] == codes
    for warning in found:
        assert warning.why
        assert word.strip() in warning.message


def test_tags_of_the_taggers_on_this_machine_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "selected_tags.csv"
    table.write_text("tag_id,name,category,count\n1,hatsune_miku,4,9\n", "utf-8")
    monkeypatch.setattr(known_tags, "try_to_load_from_cache", lambda repo, file: str(table))
    known_tags.known_tags.cache_clear()
    try:
        assert [warning.code for warning in check_trigger("Hatsune_Miku")] == ["trigger_unique"]
    finally:
        known_tags.known_tags.cache_clear()
    assert check_trigger("hatsune_miku", tags=()) == []


def test_tokens_are_those_of_clip() -> None:
    assert trigger_tokens("saria_zelda") == ["sar", "ia", "_", "zelda"]
    assert trigger_tokens("") == []


@given(hint=st.text(max_size=20))
@example(hint="5")
def test_proposals_break_no_rule_and_are_the_same_each_time(hint: str) -> None:
    proposals = propose_triggers(hint)
    assert len(set(proposals)) == 3
    assert proposals == propose_triggers(hint)
    for word in proposals:
        assert check_trigger(word) == []
        assert 2 <= len(trigger_tokens(word)) <= 4
