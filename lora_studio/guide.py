"""The guide as data: DuskFall's opinions on LoRA training, each with its reason, once.

Everything that the studio recommends stands here and is used from here: as a default in config.py, as a check in
planning, as a hint at a field, or as a verdict on a run. It is advice: nothing in this module forbids anything.

Source: "Opinionated Guide to All LoRA Training (2025 Update)" by DuskFall (Ktiseos-Nyx),
https://civitai.com/articles/1716. Wording and corrections are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Advice:
    """What the guide says about one setting: its value, the range that it considers sensible, and why.

    `low` and `high` bound the sensible range (inclusive, in the setting's own unit); None leaves that side open.
    """

    value: Any
    why: str
    low: float | None = None
    high: float | None = None


RECIPE: Mapping[str, Advice] = MappingProxyType(
    {
        "unet_lr": Advice(
            5e-4,
            "Strong enough to learn well; lower it if the loss is unstable, raise it if nothing happens.",
        ),
        "text_encoder_lr": Advice(
            1e-4, "A fifth of the UNet's rate, so that the trigger word does not contaminate other prompts."
        ),
        "network_dim": Advice(
            32, "More nuance than the traditional 8 to 16; go lower for simple concepts.", low=8, high=64
        ),
        "network_alpha": Advice(16, "Half of the dimension: it scales the update by alpha / dim."),
        "optimizer": Advice("Adafactor", "Memory efficient and stable."),
        "noise_offset": Advice(
            0.05, "Deeper contrast and more varied lighting; the guide uses 0.03 to 0.1.", low=0.03, high=0.1
        ),
        "clip_skip": Advice(2, "SDXL was made with the second-to-last layer (2); 1 is rarely what a base expects."),
        "resolution": Advice(1024, "The sweet spot of SDXL; 768 works well for most, 512 is for tests."),
        "enable_bucket": Advice(
            True, "Images of mixed shapes keep their aspect ratio instead of being cropped square."
        ),
        "batch_size": Advice(2, "2 to 4 as memory allows; 1 when desperate for memory.", low=1, high=4),
        "epochs": Advice(10, "10 to 15 for 10 to 50 images, 5 to 8 up to 300, 3 to 5 above.", low=3, high=15),
        "mixed_precision": Advice("auto", "bf16 or fp16 halves the memory; bf16 where the GPU has it."),
        "tagger_threshold": Advice(0.35, "0.35 to 0.40 gives balanced tags.", low=0.35, high=0.40),
        "strengths": Advice(
            (0.0, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2),
            "0.7 to 1.2 is where a LoRA is used; 0 shows what the base draws without it.",
        ),
    }
)
