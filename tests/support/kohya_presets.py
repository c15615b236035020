"""The settings of kohya_ss' 19 SDXL presets, as arguments of sd-scripts, and the recipes that they mean.

`tests/data/kohya_presets.json` has the arguments that have an effect, by preset (kohya_ss 45088f0, `presets/lora/`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data" / "kohya_presets.json"
OPTIONS: dict[str, dict[str, Any]] = json.loads(DATA.read_text("utf-8"))

# Settings of another name.
RENAMED = {
    "optimizer_type": "optimizer",
    "train_batch_size": "batch_size",
    "max_train_epochs": "epochs",
    "factor": "lokr_factor",
}
# What sd-scripts uses where a preset says nothing, and this trainer does not.
SCRIPT_DEFAULTS = {"noise_offset": 0.0, "min_snr_gamma": 0.0, "caption_extension": ".txt"}
# A LoRA is saved in fp16, or fp32 after a run in fp32, which every program reads; trackers only show a run.
WITHOUT_EFFECT_ON_TRAINING = {"save_precision", "log_with"}
NETWORKS = {"loha": "LoHa", "lokr": "LoKr"}


def recipe_values(options: dict[str, Any]) -> dict[str, Any]:
    """Return a preset's arguments as recipe values; those without a setting keep their names."""
    given = {name: value for name, value in options.items() if name not in WITHOUT_EFFECT_ON_TRAINING}
    given |= given.pop("network_args", {})
    values = dict(SCRIPT_DEFAULTS)
    if given.pop("network_module") == "lycoris.kohya":
        values |= {"network_type": NETWORKS[given.pop("algo")], "train_layers": "all"}
    if given.pop("network_train_unet_only", False):
        values["text_encoder_lr"] = 0
    return values | {RENAMED.get(name, name): value for name, value in given.items()}
