"""Token counts without torch equal those of the tokenizer that training uses."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from lora_studio.dataset.captions.token_count import MAX_TOKENS, clip_tokenizer, count_tokens
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
def test_counts_like_the_tokenizer_of_training(caption: str, tokenizer: CLIPTokenizer) -> None:
    assert count_tokens(caption) == len(tokenizer(caption, truncation=False).input_ids) - 2


SPECIAL = ["ΟΔΟΣ", "Σ", "e\u0301", "\u0301", "'s", "it's", ":),", "1girl", "\u00a0", ","]


@given(st.lists(st.text(max_size=12), max_size=6).map(" ".join))
def test_counting_word_by_word_equals_counting_the_caption(caption: str) -> None:
    assert count_tokens(caption) == len(clip_tokenizer().encode(caption).ids)


@given(st.lists(st.sampled_from(SPECIAL)).map(" ".join))
def test_counting_word_by_word_is_exact_for_special_characters(caption: str) -> None:
    assert count_tokens(caption) == len(clip_tokenizer().encode(caption).ids)


def test_the_limit_is_that_of_the_encoders(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.model_max_length - 2 == MAX_TOKENS


def test_counting_does_not_import_torch() -> None:
    code = (
        "import sys; from lora_studio.dataset.captions.token_count import count_tokens; "
        "count_tokens('a'); print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
