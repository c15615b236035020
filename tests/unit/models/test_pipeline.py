"""Generating one image: seeds, stop requests, and values that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lora_studio.models.load import Base, load_base
from lora_studio.models.locate import resolve_base
from lora_studio.models.pipeline import TextEmbeddings, generate_image, make_pipeline
from lora_studio.workspace.project import Home

PROMPT = TextEmbeddings(torch.ones(1, 77, 40), torch.ones(1, 24))


@pytest.fixture(scope="module")
def loaded(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The tiny base, loaded."""
    return load_base(resolve_base(str(base), Home(tmp_path_factory.mktemp("home"))), dtype=torch.float32)


def draw(base: Base, seed: int = 1, should_stop: Callable[[], bool] = lambda: False) -> Image.Image | None:
    return generate_image(
        make_pipeline(base),
        PROMPT,
        PROMPT.zeros(),
        seed=seed,
        steps=2,
        guidance=4.0,
        width=64,
        height=32,
        should_stop=should_stop,
    )


def test_the_seed_alone_decides_the_image(loaded: Base) -> None:
    first = draw(loaded)
    torch.manual_seed(7)
    again, other = draw(loaded), draw(loaded, seed=2)
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.size == (64, 32)
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_a_stop_request_ends_the_sampling_after_the_current_step(loaded: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    forward = loaded.unet.forward

    def counted(*given: Any, **named: Any) -> Any:
        steps.append(len(steps))
        return forward(*given, **named)

    monkeypatch.setattr(loaded.unet, "forward", counted)
    assert draw(loaded, should_stop=lambda: True) is None
    assert len(steps) == 1


def test_latents_that_are_not_finite_give_no_image(loaded: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.unet, "forward", lambda noisy, *given, **named: (torch.full_like(noisy, float("nan")),))
    assert draw(loaded) is None


def test_pixels_that_are_not_finite_give_no_image(loaded: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(latents: torch.Tensor, **named: Any) -> tuple[torch.Tensor]:
        return (torch.full((1, 3, 32, 64), float("inf")),)

    monkeypatch.setattr(loaded.vae, "decode", decode)
    assert draw(loaded) is None


def test_decoding_is_retried_in_tiles_after_an_out_of_memory_error(
    loaded: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = loaded.vae.decode

    def with_little_memory(latents: torch.Tensor, **named: Any) -> Any:
        if not loaded.vae.use_tiling:
            raise torch.OutOfMemoryError
        return decode(latents, **named)

    monkeypatch.setattr(loaded.vae, "decode", with_little_memory)
    try:
        assert draw(loaded) is not None
    finally:
        loaded.vae.disable_tiling()
