"""Scale an image and crop it to its bucket, for the VAE and for the preview of what it gets."""

from __future__ import annotations

from PIL import Image

from lora_studio.dataset.buckets import Placement


def crop_to_bucket(image: Image.Image, placement: Placement, *, flipped: bool = False) -> Image.Image:
    """Return an image or mask scaled and cropped as its placement says, then mirrored if `flipped`."""
    left, top = placement.crop
    width, height = placement.bucket
    if image.size != placement.scaled:
        image = image.resize(placement.scaled, Image.Resampling.LANCZOS)
    image = image.crop((left, top, left + width, top + height))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else image
