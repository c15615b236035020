"""What training sees of an image, as a frame over it and as text."""

from __future__ import annotations

from typing import NamedTuple

from lora_studio.dataset.crops import ImageCrop


class Frame(NamedTuple):
    """Shares of an image as CSS: what is cropped at its sides, and the focus point from the left and the top."""

    inset: str
    focus: str = ""

    @classmethod
    def of(cls, crop: ImageCrop) -> Frame:
        """Return the frame of what training sees."""
        (width, height), (left, top), bucket = crop.scaled, crop.crop, crop.bucket
        sides = (top / height, (width - left - bucket[0]) / width, (height - top - bucket[1]) / height, left / width)
        inset = " ".join(f"{100 * side:.3f}%" for side in sides)
        return cls(inset, f"left: {100 * crop.focus.x:.2f}%; top: {100 * crop.focus.y:.2f}%" if crop.focus else "")


def crop_text(crop: ImageCrop | None, *, is_random: bool) -> str:
    """Return what training does with an image, in a sentence."""
    if crop is None:
        return "Training does not use this image."
    focus = " Centred on the focus point." if crop.focus else ""
    return f"{crop.text}.{' random_crop is on: each step draws another crop.' if is_random else focus}"
