"""The lean GEGLU: outputs, gradients and weight names are diffusers', and less memory is saved."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from diffusers.models.activations import GEGLU

from lora_studio.training.speed.geglu import LeanGEGLU, _GEGLUFunction, use_lean_geglu
from tests.support.counting import saved_bytes
from tests.support.tiny_sdxl import make_pipeline


def test_gradients_are_correct() -> None:
    x = torch.randn((2, 3, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(_GEGLUFunction.apply, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_equal_diffusers_with_less_saved_memory(dtype: torch.dtype) -> None:
    """It saves the two halves of the projection and its input; diffusers saves gelu(g) as well."""
    torch.manual_seed(1)
    theirs = GEGLU(12, 20).to(dtype)
    x = torch.randn((2, 5, 12), dtype=dtype)
    results, saved_sizes = [], []
    for geglu in (theirs, LeanGEGLU(theirs.proj)):
        own = x.clone().requires_grad_()
        with saved_bytes(geglu.parameters()) as saved:
            y = geglu(own)
        y.float().sin().sum().backward()
        results.append((y, own.grad))
        saved_sizes.append(saved())
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    assert saved_sizes[0] - saved_sizes[1] == 2 * 5 * 20 * x.itemsize


def test_weight_names_and_outputs_of_a_unet_are_unchanged(tmp_path: Path) -> None:
    unet = make_pipeline(tmp_path, layers=1).unet
    lean = deepcopy(unet)
    use_lean_geglu(lean)
    assert list(lean.state_dict()) == list(unet.state_dict())
    assert not any(isinstance(module, GEGLU) for module in lean.modules())
    inputs = torch.ones(1, 4, 8, 8), 5, torch.ones(1, 7, unet.config.cross_attention_dim)
    added = {"text_embeds": torch.ones(1, 24), "time_ids": torch.ones(1, 6)}
    with torch.no_grad():
        outputs = [model(*inputs, added_cond_kwargs=added).sample for model in (unet, lean)]
    torch.testing.assert_close(*outputs)
