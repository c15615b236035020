"""Measures of samples, as a run reports them."""

from __future__ import annotations

from typing import Any

from lora_studio.events import SampleMeasuresEvent


def measures(step: int = 100, **changes: Any) -> SampleMeasuresEvent:
    """Return the measures of four good samples with changes."""
    return SampleMeasuresEvent.model_validate(
        {
            "step": step,
            "epoch": None,
            "features": "wd14",
            "images": 20,
            "indices": [0, 1, 2, 3],
            "nearest": ["/set/a.png", "/set/b.png", "/set/c.png", "/set/d.png"],
            "nearest_ratio": [1.1, 0.9, 1.3, 1.0],
            "variety": (0.4, 0.03),
            "training_variety": 0.3,
            "contrast": (0.25, 0.02),
            "saturation": (0.3, 0.03),
            "clipped": (0.1, 0.02),
            "training_contrast": 0.25,
            "training_saturation": 0.3,
            "training_clipped": 0.1,
        }
        | changes
    )
