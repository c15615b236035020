"""The GPU memory of each phase of a run and of a sweep at SDXL's real size, beside what the plan says.

No GPU is needed: the code that runs does so on the meta device, whose tensors have no data. A row is a recipe; figures
are the peak of the tensors in GiB, without the `RUNTIME_GIB` that the plan adds for CUDA. In the last rows the GPU has
only what a card of that size leaves, which gradient checkpointing `auto` and decoding in tiles adapt to.
"""

from __future__ import annotations

import math
from typing import Any

from lora_studio.planning.memory import DESKTOP_GIB, GIB, RUNTIME_GIB, estimate_vram_phases, fit_vram
from lora_studio.settings.recipe import Recipe
from tests.support.memory_phases import run_phases, sweep_phases

SHORT = {"mixed_precision": "bf16", "sample_steps": 1, "sample_prompts": ["a"]}
ONE = {"text_encoder_lr": 0.0, "batch_size": 1, "gradient_checkpointing": "on"}
ROWS: dict[str, dict[str, Any]] = {
    "batch 1": ONE,
    "batch 4": ONE | {"batch_size": 4},
    "batch 1, no checkpointing": ONE | {"gradient_checkpointing": "off"},
    "batch 1, 1536 px": ONE | {"resolution": 1536, "max_bucket_reso": 2048},
    "batch 2, text encoders, 75 tokens": ONE | {"batch_size": 2, "text_encoder_lr": 1e-4},
    "batch 2, text encoders, 225 tokens": ONE | {"batch_size": 2, "text_encoder_lr": 1e-4, "max_token_length": 225},
    **{f"batch 1, {base}": ONE | {"base_precision": base} for base in ("int8", "nf4")},
    **{f"batch 1, {name}": ONE | {"optimizer": name} for name in ("AdamW", "AdamW8bit", "CAME", "AdamWScheduleFree")},
    "batch 1, Prodigy": ONE | {"optimizer": "Prodigy", "unet_lr": 1.0},
}


def show(name: str, recipe: Recipe, limit: float = math.inf, vram: float | None = None) -> None:
    """Print the peaks of a recipe's phases, then the plan's."""
    peaks = run_phases(recipe, limit)
    print(f"{name}: {', '.join(f'{phase} {size / GIB:.2f}' for phase, size in peaks.items())}")
    planned = estimate_vram_phases(recipe, None, vram)
    print(f"  planned: {', '.join(f'{phase} {gib - RUNTIME_GIB:.2f}' for phase, gib in planned.items())}", flush=True)


def main() -> None:
    for name, settings in ROWS.items():
        show(name, Recipe.parse(SHORT | settings))
    for vram in (6, 8, 10, 12, 16, 24):
        recipe, savings = fit_vram(Recipe.parse(SHORT | {"batch_size": 4}), None, vram)
        changes = "".join(f", {saving.code}" for saving in savings)
        show(f"{vram} GiB{changes}", recipe, (vram - DESKTOP_GIB - RUNTIME_GIB) * GIB, vram)
    print("sweep:", ", ".join(f"{phase} {size / GIB:.2f}" for phase, size in sweep_phases().items()))


if __name__ == "__main__":
    main()
