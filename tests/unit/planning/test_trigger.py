from __future__ import annotations

import pytest

from lora_studio.planning.trigger import check_trigger


@pytest.mark.parametrize("word", ["saria_zelda", "inkstamp_hc", "ohwx77", "mychar-v2"])
def test_good_trigger_words_give_no_warning(word: str) -> None:
    assert check_trigger(word) == []


@pytest.mark.parametrize(
    ("word", "codes"),
    [
        ("", ["trigger_missing"]),
        ("   ", ["trigger_missing"]),
        ("saria", ["trigger_unique"]),
        ("Watercolor", ["trigger_style"]),
        ("oil painting", ["trigger_characters", "trigger_style"]),
        ("line-art", ["trigger_style"]),
        ("saria zelda", ["trigger_characters"]),
        ("saria_(zelda)", ["trigger_characters"]),
        ("a_1", ["trigger_memorable"]),
        ("the_very_long_name_of_my_character", ["trigger_memorable"]),
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
