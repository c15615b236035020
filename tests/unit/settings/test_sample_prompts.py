"""Sample prompts with options in kohya's syntax."""

from __future__ import annotations

from typing import Any

import pytest

from lora_studio.models.catalogue import BASES
from lora_studio.settings.choices import Sampler
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.sample_prompts import (
    SamplePrompt,
    fill_trigger,
    negative_prompt,
    read_sample_prompts,
    sample_prompt_errors,
)


def read(*lines: str, **settings: Any) -> list[SamplePrompt]:
    return read_sample_prompts(Recipe.parse({"sample_prompts": list(lines), **settings}))


def test_options_change_the_settings_of_their_line_alone() -> None:
    line = "{trigger}, a cat  --n blurry, bad hands --w 832 --h 1216 --d 7 --s 30 --l 5.5 --ss euler_a"
    own, plain = read(line, "a dog", sample_steps=12, sample_seed=3)
    assert (own.text, plain.text) == ("{trigger}, a cat", "a dog")
    settings = own.settings
    assert settings.sample_negative_prompt == "blurry, bad hands"
    assert (settings.sample_width, settings.sample_height, settings.sample_seed) == (832, 1216, 7)
    assert (settings.sample_steps, settings.sample_guidance) == (30, 5.5)
    assert settings.sample_sampler is Sampler.EULER_A
    assert (plain.settings.sample_steps, plain.settings.sample_seed, plain.settings.sample_width) == (12, 3, None)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("a --W 1030", "sample_width", 1024),
        ("a --s 5 --s 6", "sample_steps", 6),
        ("a --ss k_dpm_2_a", "sample_sampler", Sampler.DPM_2_A),
        ("a --ss dpmsolver++", "sample_sampler", Sampler.DPMSOLVER_PP),
        ("a --n", "sample_negative_prompt", ""),
        ("--n blurry", "sample_negative_prompt", "blurry"),
        ("a semi--open door", "sample_steps", 20),
    ],
)
def test_options_are_read_as_in_sd_scripts(line: str, name: str, value: object) -> None:
    (prompt,) = read(line)
    assert not prompt.errors
    assert getattr(prompt.settings, name) == value


def test_comments_are_not_prompts() -> None:
    assert [prompt.text for prompt in read("# portraits --w x", "a cat", "--s 5")] == ["a cat", ""]


def test_all_wrong_options_are_reported_with_line_value_and_remedy() -> None:
    lines = ["a --w wide --s 0 --ss foo", "b", "c --cn pose.png --l 99"]
    errors = sample_prompt_errors(Recipe(sample_prompts=lines), zero_terminal_snr=False)
    expected = [
        ("line 1", "--w", "wide", "--w 1024"),
        ("line 1", "--s", "'0'", "--s 20"),
        ("line 1", "--ss", "foo", "dpmsolver++"),
        ("line 3", "--cn", "--n, --w"),
        ("line 3", "--l", "99", "--l 6"),
    ]
    assert len(errors) == len(expected)
    for error, parts in zip(errors, expected, strict=True):
        assert all(part in error for part in ("sample_prompts", *parts)), error


def test_a_base_with_zero_terminal_snr_needs_a_sampler_that_starts_from_pure_noise() -> None:
    recipe = Recipe(sample_prompts=["a", "b --ss heun", "c --ss ddim"])
    assert sample_prompt_errors(recipe, zero_terminal_snr=False) == []
    (error,) = sample_prompt_errors(recipe, zero_terminal_snr=True)
    assert "heun" in error
    assert "euler" in error


@pytest.mark.parametrize(
    ("given", "base", "expected"),
    [
        ("auto", "pony", BASES["Pony V6 XL"].negative_prompt),
        ("auto", "my/merge.safetensors", ""),
        ("", "pony", ""),
        ("green", "pony", "green"),
    ],
)
def test_the_negative_prompt_is_that_of_the_base_or_the_users(given: str, base: str, expected: str) -> None:
    assert negative_prompt(Recipe(sample_negative_prompt=given), base) == expected


@pytest.mark.parametrize(
    ("prompt", "trigger", "filled"),
    [
        ("{trigger}, smiling", "saria", "saria, smiling"),
        ("{trigger}, smiling", "", "smiling"),
        ("a cat, {trigger} , red", "", "a cat, red"),
        ("{trigger}", "", ""),
        ("a cat,  red", "", "a cat,  red"),
        ("{trigger} and {trigger}", "x", "x and x"),
    ],
)
def test_trigger_placeholder_is_replaced_or_removed(prompt: str, trigger: str, filled: str) -> None:
    assert fill_trigger(prompt, trigger) == filled
