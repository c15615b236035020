"""Settings of the captions."""

from __future__ import annotations

from typing import Any

import pytest

from lora_studio.errors import ConfigError
from lora_studio.settings.recipe import Recipe


@pytest.mark.parametrize(
    "values",
    [{"caption_extension": ".."}, {"token_warmup_step": 1.5}, {"token_warmup_step": -1}, {"caption_prefix": "x" * 501}],
)
def test_invalid_settings_of_captions_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        Recipe.parse(values)


def test_texts_are_one_line() -> None:
    found = Recipe.parse({"caption_prefix": " a \n b,", "caption_suffix": None, "keep_tokens_separator": " ||| "})
    assert (found.caption_prefix, found.caption_suffix, found.keep_tokens_separator) == ("a b,", "", "|||")


@pytest.mark.parametrize(
    "values",
    [
        {"shuffle_caption": True},
        {"caption_tag_dropout_rate": 0.1},
        {"token_warmup_step": 0.1},
        {"enable_wildcard": True},
    ],
)
def test_captions_are_augmented(values: dict[str, Any]) -> None:
    assert Recipe.parse(values).augments_captions
    assert not Recipe.parse({"caption_prefix": "x", "caption_dropout_rate": 0.1}).augments_captions


@pytest.mark.parametrize(("given", "kept"), [("", ""), (".txt2", ".txt2"), ("tags", ".tags"), (" .txt-no ", ".txt-no")])
def test_a_caption_extension_has_a_dot(given: str, kept: str) -> None:
    assert Recipe.parse({"caption_extension": given}).caption_extension == kept


@pytest.mark.parametrize("given", [".", "a/b", "../x", "*", "a b"])
def test_a_caption_extension_is_not_a_path(given: str) -> None:
    with pytest.raises(ConfigError, match="caption_extension"):
        Recipe.parse({"caption_extension": given})
