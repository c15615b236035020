"""The catalogue of base models: complete, consistent entries that are found by name."""

from __future__ import annotations

import json

import pytest

from lora_studio.guide import STYLE_TERMS
from lora_studio.models.catalogue import BASES, find_base
from lora_studio.settings.choices import PredictionType, Sampler


def test_negative_prompts_name_flaws_of_one_base_and_no_style() -> None:
    """A style in the negative prompt of the samples would hide that the LoRA learns it."""
    stated = [base for base in BASES.values() if base.negative_prompt]
    assert len(stated) > 6
    for base in stated:
        words = {word for tag in base.negative_prompt.split(", ") for word in (tag, *tag.split())}
        assert not words & STYLE_TERMS, base.name
        assert not words & {*base.prompt_prefix.split(", "), *base.prompt_suffix.split(", ")} - {""}, base.name


def test_catalogue_has_the_guides_bases() -> None:
    assert list(BASES) == [
        "SDXL 1.0", "RealVisXL V5.0", "Juggernaut XL v9", "DreamShaper XL",
        "Pony V6 XL", "Illustrious XL", "NoobAI XL", "NoobAI XL v-pred", "Animagine XL", "embedded",
    ]  # fmt: skip
    for name, base in BASES.items():
        assert base.name == name
        assert base.good_for
        assert base.why
        assert base.license
        assert base.prediction_type in {kind.value for kind in PredictionType}
        assert base.is_embedded == (name == "embedded") == (not base.repo)
        assert base.repo.count("/") == (1 if base.repo else 0)
        assert base.license_url.startswith("https://") != base.is_embedded
        assert not base.sampler or base.sampler in list(Sampler)
        for bounds in (base.steps, base.guidance):
            assert bounds is None or 0 < bounds[0] <= bounds[1]
        assert not base.zero_terminal_snr or base.prediction_type == "v_prediction"
    assert [name for name, base in BASES.items() if base.zero_terminal_snr] == ["NoobAI XL v-pred"]
    assert {base.tagger for base in BASES.values() if base.family == "anime"} == {"wd14"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SDXL 1.0", "SDXL 1.0"),
        ("sdxl", "SDXL 1.0"),
        (" pony v6 xl ", "Pony V6 XL"),
        ("laxhar/NoobAI-XL-Vpred-1.0", "NoobAI XL v-pred"),
        ("NoobAI XL epsilon", "NoobAI XL"),
        ("sg161222/realvisxl_v5.0", "RealVisXL V5.0"),
        ("demo", "embedded"),
    ],
)
def test_finds_bases_by_name_alias_and_repository(text: str, name: str) -> None:
    found = find_base(text)
    assert found is BASES[name]


@pytest.mark.parametrize("text", ["", " ", "/models/sdxl.safetensors", "somebody/else"])
def test_other_text_is_not_found_in_the_catalogue(text: str) -> None:
    assert find_base(text) is None


def test_names_and_aliases_are_unique() -> None:
    words = [word for base in BASES.values() for word in (base.name.lower(), base.repo.lower(), *base.aliases) if word]
    assert len(words) == len(set(words))
    assert all(word == word.lower() for base in BASES.values() for word in base.aliases)


def test_prompts_get_the_bases_quality_tags() -> None:
    assert BASES["SDXL 1.0"].prompt("a cat") == "a cat"
    assert BASES["Pony V6 XL"].prompt("a cat").startswith("score_9, score_8_up")
    assert BASES["Pony V6 XL"].prompt("a cat").endswith(", a cat")
    assert BASES["Animagine XL"].prompt("a cat").startswith("a cat, masterpiece")


def test_bases_can_be_dumped_as_json() -> None:
    for base in BASES.values():
        assert json.loads(json.dumps(base.as_dict()))["license"] == base.license


def test_texts_have_no_exclamation_marks_or_emoji() -> None:
    text = json.dumps([base.as_dict() for base in BASES.values()], ensure_ascii=False)
    assert "!" not in text
    assert not any(ord(letter) > 0x2600 for letter in text)
