"""Latents of renderings: one round per file, resumable, from trained emoji only, deleted when the encoder changes."""

from __future__ import annotations

from pathlib import Path

import torch
from demo_pack import pictures, rendered_latents, vae
from demo_pack.pictures import Picture

SIZE = 32  # px, of the icons


def trained(words: list[Picture]) -> set[int]:
    return {i for i, word in enumerate(words) if not (word.held_out or word.is_flag)}


def test_each_round_has_a_rendering_of_every_trained_emoji_and_of_no_other(work: Path) -> None:
    rendered_latents.write(work, seed=0, device="cpu", rounds=2)
    found = rendered_latents.load(work)
    words = pictures.load(work, pictures.TRAINING_SETS)[0]
    assert len(trained(words)) == len(words) - 4  # a flag and an emoji that trains no model, in both sets
    assert sorted(row.icon for row in found) == sorted([*trained(words)] * 2)
    partners = {row.partner for row in found} - {None}
    assert partners
    assert partners <= trained(words)
    assert all((row.partner is not None) == ("side by side" in row.style) for row in found)
    assert all(row.latent.shape == (4, SIZE // 8, SIZE // 8) and row.latent.isfinite().all() for row in found)


def test_written_rounds_are_kept_and_missing_ones_are_the_same_as_at_once(work: Path) -> None:
    rendered_latents.write(work, seed=0, device="cpu", rounds=1)
    first = work / vae.RENDERED_LATENTS / "0.pt"
    written = first.stat().st_mtime_ns
    rendered_latents.write(work, seed=0, device="cpu", rounds=2)
    assert first.stat().st_mtime_ns == written
    resumed = rendered_latents.load(work)
    first.unlink()
    rendered_latents.write(work, seed=0, device="cpu", rounds=2)
    again = rendered_latents.load(work)
    assert [row.style for row in resumed] == [row.style for row in again]
    assert all(torch.equal(one.latent, other.latent) for one, other in zip(resumed, again, strict=True))


def test_another_encoder_deletes_the_latents_of_the_one_before(work: Path) -> None:
    rendered_latents.write(work, seed=0, device="cpu", rounds=1)
    vae.build().save_pretrained(work / "pack" / "base" / "vae")
    vae.adopt(work, work / "pack")
    assert rendered_latents.load(work) == []
