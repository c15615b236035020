from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.models.pipeline import TextEmbeddings
from lora_studio.models.prompt_weights import encode_prompt, parse_prompt
from lora_studio.models.text_encoding import encode_text
from tests.support.tiny_sdxl import make_pipeline

SPECIAL = "()[]\\"
plain = st.text(st.characters(codec="ascii", exclude_characters=SPECIAL), min_size=1, max_size=12)


def parse_weights(prompt: str) -> list[tuple[str, float]]:
    """Return the parts of a prompt without BREAK."""
    [parts] = parse_prompt(prompt)
    return parts


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("a (hill:0.5), b", [("a ", 1.0), ("hill", 0.5), (", b", 1.0)]),
        ("[less]", [("less", 1 / 1.1)]),
        ("((more))", [("more", 1.1 * 1.1)]),
        ("a:b, 3:4", [("a:b, 3:4", 1.0)]),
        ("not opened:1.5)", [("not opened:1.5)", 1.0)]),
        (r"saria \(zelda\)", [("saria (zelda)", 1.0)]),
        ("", [("", 1.0)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",  # the example of A1111's docstring
            [
                *[("a ", 1.0), ("house", 1.573), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55)],
                *[(", sun, ", 1.1), ("sky", 1.4641), (".", 1.1)],
            ],
        ),
    ],
)
def test_weights_are_those_of_a1111(prompt: str, parts: list[tuple[str, float]]) -> None:
    found = parse_weights(prompt)
    assert [text for text, _ in found] == [text for text, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])


@given(text=plain)
def test_text_without_brackets_has_weight_1(text: str) -> None:
    assert parse_weights(text) == [(text, 1.0)]


@given(text=st.text(st.characters(codec="utf-8"), max_size=30))
def test_escaped_text_stays_as_it_is(text: str) -> None:
    escaped = "".join(f"\\{letter}" if letter in SPECIAL else letter for letter in text)
    assert parse_weights(escaped) == [(text, 1.0)]


@given(text=st.text(alphabet="ab:1.5 ()[]\\", max_size=40))
def test_no_prompt_loses_a_letter_or_gets_a_weight_that_is_not_finite(text: str) -> None:
    parts = parse_weights(text)
    kept = [letter for part, _ in parts for letter in part if letter in "ab "]
    assert kept == [letter for letter in text if letter in "ab "] or "1" in text  # a weight has its spaces
    assert all(abs(weight) < 1e12 for _, weight in parts)
    assert all(one[1] != other[1] for one, other in pairwise(parts))


@given(words=st.lists(st.sampled_from(["a", "b c", "d,"]), min_size=1, max_size=4), weight=st.floats(0.1, 3))
def test_a_weight_of_all_is_the_weight_of_each(words: list[str], weight: float) -> None:
    [(text, found)] = parse_weights(f"({' '.join(words)}:{weight:f})")
    assert (text, found) == (" ".join(words), pytest.approx(weight, abs=1e-6))


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_pipeline(tmp_path_factory.mktemp("tokenizers"))


def parts_of(pipe: Any) -> tuple[list[Any], list[Any]]:
    encoders = [pipe.text_encoder, pipe.text_encoder_2]
    return encoders, [pipe.tokenizer, pipe.tokenizer_2]


@torch.no_grad()
def test_a_prompt_without_weights_is_encoded_as_captions_are(pipe: Any) -> None:
    for text, length in (("a cat", 75), ("x" * 100, 150), ("", 75)):
        ours = encode_prompt(*parts_of(pipe), text, 2)
        theirs = encode_text(*parts_of(pipe), [text], 2, length)
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True)), text


@pytest.mark.parametrize(
    ("prompt", "groups"),
    [
        ("a BREAK b", [[("a", 1.0)], [("b", 1.0)]]),
        ("a,\nBREAK\n b", [[("a,", 1.0)], [("b", 1.0)]]),
        ("BREAKFAST, break", [[("BREAKFAST, break", 1.0)]]),
        ("a BREAK, (b:1.5)", [[("a", 1.0)], [(", ", 1.0), ("b", 1.5)]]),
        ("(a BREAK b:1.2) c", [[("a", 1.2)], [("b", 1.2), (" c", 1.0)]]),
        ("BREAK a BREAK BREAK", [[("", 1.0)], [("a", 1.0)], [("", 1.0)], [("", 1.0)]]),
    ],
)
def test_break_separates_parts(prompt: str, groups: list[list[tuple[str, float]]]) -> None:
    assert parse_prompt(prompt) == groups


words = st.lists(st.sampled_from(["a", "b", "c,", "BREAK"]), min_size=1, max_size=8)


@given(words=words)
def test_every_break_starts_one_group_and_nothing_else_is_lost(words: list[str]) -> None:
    groups = parse_prompt(" ".join(words))
    assert len(groups) == words.count("BREAK") + 1
    kept = " ".join(text for group in groups for text, _ in group).split()
    assert kept == [word for word in words if word != "BREAK"]


@torch.no_grad()
@pytest.mark.parametrize(
    ("prompt", "chunks"),
    [
        ("a BREAK b c", ["a", "b c"]),
        ("x" * 75 + " BREAK b", ["x" * 75, "b"]),
        ("a " * 80 + "BREAK b", ["a " * 75, "a " * 5, "b"]),
        ("BREAK a", ["", "a"]),
        ("a BREAK BREAK b", ["a", "", "b"]),
        ("a BREAK", ["a"]),
        ("BREAK", [""]),
    ],
)
def test_a_break_ends_a_chunk_which_is_encoded_alone(pipe: Any, prompt: str, chunks: list[str]) -> None:
    hidden, pooled = encode_prompt(*parts_of(pipe), prompt, 2)
    alone = [encode_prompt(*parts_of(pipe), chunk, 2) for chunk in chunks]
    assert torch.allclose(hidden, torch.cat([one for one, _ in alone], dim=1), atol=1e-5)
    assert torch.allclose(pooled, alone[0][1], atol=1e-5)


@torch.no_grad()
def test_weights_after_a_break_are_those_of_their_chunk(pipe: Any) -> None:
    whole, _ = encode_prompt(*parts_of(pipe), "a BREAK (b:1.5) c", 2)
    alone, _ = encode_prompt(*parts_of(pipe), "(b:1.5) c", 2)
    plain, _ = encode_prompt(*parts_of(pipe), "a", 2)
    assert torch.allclose(whole, torch.cat([plain, alone], dim=1), atol=1e-5)
    assert not torch.allclose(alone, encode_prompt(*parts_of(pipe), "b c", 2)[0], atol=1e-5)


@torch.no_grad()
def test_weights_scale_their_tokens_and_keep_the_mean_of_each_encoder(pipe: Any) -> None:
    before, pooled = encode_prompt(*parts_of(pipe), "a b c", 2)
    after, pooled_after = encode_prompt(*parts_of(pipe), "a (b:1.5) c", 2)
    assert torch.equal(pooled, pooled_after)
    widths = [encoder.config.hidden_size for encoder in parts_of(pipe)[0]]
    for one, other in zip(before.split(widths, -1), after.split(widths, -1), strict=True):
        assert other.mean() == pytest.approx(float(one.mean()), rel=1e-3)
        ratio = other / one
        assert ratio[0, 2].mean() == pytest.approx(1.5 * float(ratio[0, 1].mean()), rel=1e-4)


@torch.no_grad()
def test_prompts_of_different_lengths_attend_as_if_each_were_alone(pipe: Any) -> None:
    text = torch.randn(1, 77, pipe.unet.config.cross_attention_dim)
    short = TextEmbeddings(text, torch.randn(1, 24))
    latents, timestep = torch.randn(1, 4, 8, 8), torch.tensor(5)
    added = {"text_embeds": short.pooled, "time_ids": torch.zeros(1, 6)}
    once = pipe.unet(latents, timestep, short.hidden, added_cond_kwargs=added).sample
    thrice = pipe.unet(latents, timestep, short.repeated(231).hidden, added_cond_kwargs=added).sample
    assert torch.allclose(once, thrice, atol=1e-5)
