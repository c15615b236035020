"""The attention processor: diffusers' results in fewer operations."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention

from lora_studio.training.speed.attention import PlainAttention, use_plain_attention
from tests.support.tiny_sdxl import make_pipeline


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_pipeline(tmp_path_factory.mktemp("tokenizers"), layers=1)


def test_output_is_that_of_diffusers_processor() -> None:
    """For self-attention and for cross-attention to a text."""
    torch.manual_seed(4)
    for text in (None, torch.randn(2, 7, 12)):
        attn = Attention(16, None if text is None else 12, heads=2, dim_head=8)
        x = torch.randn(2, 5, 16)
        expected = attn(x, text)
        attn.set_processor(PlainAttention())
        torch.testing.assert_close(attn(x, text), expected, atol=1e-5, rtol=1e-4)
        mask = torch.zeros(2, 1, 5 if text is None else 7)
        torch.testing.assert_close(attn(x, text, mask), expected, atol=1e-5, rtol=1e-4)


def test_attention_with_a_residual_connection_keeps_its_processor(parts: Any) -> None:
    unet = deepcopy(parts.unet)
    odd = next(module for module in unet.modules() if isinstance(module, Attention))
    odd.residual_connection = True
    use_plain_attention(unet)
    kinds = [type(module.processor) for module in unet.modules() if isinstance(module, Attention)]
    assert kinds[0] is not PlainAttention
    assert set(kinds[1:]) == {PlainAttention}
