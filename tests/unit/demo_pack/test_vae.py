"""Images that measure the autoencoder are of emoji that train no model, and its training leaves a decoder alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from demo_pack import vae
from demo_pack.pictures import Picture
from demo_pack.progress import Length, StepRng
from demo_pack.renderings import HELD_OUT_STYLES

WORDS = [Picture("noto", number, f"emoji {number}", "face smiling", ()) for number in range(200)]


def test_reference_images_show_only_emoji_that_train_no_model() -> None:
    """Trained icons are red, the others blue: no reference image on white may have red."""
    rgba = np.zeros((len(WORDS), 24, 24, 4), np.uint8)
    for row, word in enumerate(WORDS):
        rgba[row, 4:20, 4:20] = (0, 0, 255, 255) if word.held_out else (255, 0, 0, 255)
    found = vae.reference_images(WORDS, rgba, 4)
    assert set(found) == {"on white", "renderings", *HELD_OUT_STYLES}
    red, _, blue = found["on white"][:, :, 12, 12].unbind(1)
    assert (red == -1).all()
    assert (blue == 1).all()
    assert all(-1 <= x.min() <= x.max() <= 1 for x in found.values())


def test_a_batch_has_renderings_before_icons_on_white_and_repeats() -> None:
    """A grey icon of any brightness on white has no colour; some of its renderings have."""
    rgba = np.full((4, 24, 24, 4), 90, np.uint8)
    rgba[..., 3] = 0
    rgba[:, 6:18, 6:18, 3] = 255
    colourful = []
    for step in range(4):
        found = vae.mixed_batch(rgba, StepRng.of(0, "vae", step, 0.0))
        assert found.shape == (vae.BATCH, 3, 24, 24)
        assert -1 <= found.min() <= found.max() <= 1
        assert torch.equal(found, vae.mixed_batch(rgba, StepRng.of(0, "vae", step, 0.0)))
        colourful += [((found.amax(1) - found.amin(1)) > 0.2).any(2).any(1)]
    rendered = torch.stack(colourful)[:, : vae.RENDERED]
    assert rendered.float().mean() > 0.3
    assert not torch.stack(colourful)[:, vae.RENDERED :].any()


def test_psnr_is_that_of_the_mean_squared_error() -> None:
    x = torch.zeros(1, 3, 4, 4)
    assert vae.psnr(x, x + 0.2).item() == pytest.approx(20.0)


def test_continuing_on_renderings_refuses_a_decoder_trained_before(tmp_path: Path) -> None:
    (tmp_path / "decoder.ckpt").touch()
    with pytest.raises(SystemExit, match=r"decoder\.ckpt"):
        vae.train_on_renderings(tmp_path, length=Length(steps=1), seed=0, device="cpu")
