"""Settings of the images: resolution and buckets, augmentation, masks, validation split."""

from __future__ import annotations

from lora_studio.settings.choices import MaskedLoss
from lora_studio.settings.declare import Group, Settings, setting


class DataSettings(Settings):
    """How images become training samples."""

    resolution: int = setting(
        label="Resolution", group=Group.DATA, unit="px", advice="resolution", ge=64, le=4096, multiple_of=8
    )
    enable_bucket: bool = setting(label="Aspect-ratio buckets", group=Group.DATA, advice="enable_bucket")
    min_bucket_reso: int = setting(
        256,
        label="Min bucket resolution",
        group=Group.DATA,
        unit="px",
        why="Shortest side of a bucket; kohya's default.",
        ge=64,
        le=4096,
        only_with="enable_bucket",
    )
    max_bucket_reso: int = setting(
        2048,
        label="Max bucket resolution",
        group=Group.DATA,
        unit="px",
        why="Longest side of a bucket; wide enough for panoramas at 1024 px.",
        ge=64,
        le=8192,
        only_with="enable_bucket",
    )
    bucket_reso_steps: int = setting(
        64,
        label="Bucket resolution steps",
        group=Group.DATA,
        unit="px",
        why="Bucket sides are multiples of this; SDXL was trained on multiples of 64.",
        ge=8,
        le=512,
        multiple_of=8,
        only_with="enable_bucket",
    )
    bucket_no_upscale: bool = setting(
        True,
        label="Do not upscale images",
        group=Group.DATA,
        why="A small image trains at its own size: enlarging it teaches blur.",
        only_with="enable_bucket",
    )
    flip_aug: bool = setting(
        False,
        label="Random flip",
        group=Group.DATA,
        why="Mirrors each image with 50% probability. Off for anything asymmetric: a parting, a scar, text.",
    )
    random_crop: bool = setting(
        False,
        label="Random crop",
        group=Group.DATA,
        why="Crops an image at one of 8 positions instead of its centre; matters without buckets or with large bucket "
        "steps.",
    )
    masked_loss: MaskedLoss = setting(
        MaskedLoss.OFF,
        label="Masked loss",
        group=Group.DATA,
        why="Trains only where a mask is white: alpha uses the image's transparency, files uses mask/NAME.png or "
        "NAME-masklabel.png beside the image.",
    )
    unmasked_weight: float = setting(
        0.0,
        label="Unmasked weight",
        group=Group.DATA,
        why="Minimum weight of the parts outside of the mask: OneTrainer's 0.1 keeps a little of the background, so "
        "that the LoRA does not draw noise there. 0 trains nothing outside.",
        ge=0,
        lt=1,
        only_with="masked_loss=alpha|files",
    )
    prior_loss_weight: float = setting(
        1.0,
        label="Prior loss weight",
        group=Group.DATA,
        why="Loss weight of regularisation images; 1 is DreamBooth's value.",
        ge=0,
        le=10,
    )
    validation_split: float = setting(
        0.0,
        label="Validation split",
        group=Group.DATA,
        why="Fraction of the images that is not trained on, to see when overfitting begins; 0.1 for 300 images or "
        "more, 0 below 30.",
        ge=0,
        le=0.5,
    )
