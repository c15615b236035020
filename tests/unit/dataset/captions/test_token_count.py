"""Counting tokens without torch gives what training counts."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from lora_studio.dataset.captions import token_count as tokens
from lora_studio.dataset.captions.token_count import MAX_TOKENS, count_tokens
from lora_studio.models.load import SDXL_CONFIG


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(SDXL_CONFIG / "tokenizer")


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "inkstamp_hc, grinning face",
        "A girl's hat, 2boys, :-) ^_^ >_<",
        "café, naïve, ÅNGSTRÖM, e\u0301",
        "日本語 🎉 Привет",
        "  two   spaces\n and\tmore ",
        "don't we'll I'm they've",
        "masterpiece, best quality, " * 20,
    ],
)
def test_as_the_tokenizer_of_training(caption: str, tokenizer: CLIPTokenizer) -> None:
    assert count_tokens(caption) == len(tokenizer(caption, truncation=False).input_ids) - 2


SPECIAL = ["ΟΔΟΣ", "Σ", "e\u0301", "\u0301", "'s", "it's", ":),", "1girl", "\u00a0", ","]


@given(st.lists(st.text(max_size=12), max_size=6).map(" ".join))
def test_a_caption_has_the_tokens_of_its_words(caption: str) -> None:
    assert count_tokens(caption) == len(tokens._tokenizer().encode(caption).ids)


@given(
    st.lists(st.sampled_from(["ΟΔΟΣ", "e\u0301", "\u0301", "'s", "it's", ":),", "1girl", "\u00a0", ",", "Σ"])).map(
        " ".join
    )
)
def test_words_do_not_depend_on_their_neighbours(caption: str) -> None:
    assert count_tokens(caption) == len(tokens._tokenizer().encode(caption).ids)


def test_the_limit_is_what_the_encoders_read(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.model_max_length - 2 == MAX_TOKENS


def test_counting_does_not_import_torch() -> None:
    code = (
        "import sys; from lora_studio.dataset.captions.token_count import count_tokens; "
        "count_tokens('a'); print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
