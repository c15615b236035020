"""Search for the embedded base's one recipe: the demo preset and the planner's values for this base.

A recipe is chosen on the styles in CHOSEN_ON and reported, by the stage `styles`, on all six: the other three have no
say in it. Each candidate is the demo preset with a few values changed.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo_pack import progress
from demo_pack.styles import HIGH_CONTRAST, Judges, judge_styles
from lora_studio.workspace.project import Home

CHOSEN_ON = (HIGH_CONTRAST, "blueprint", "sunset")
COUNT = 24  # training images
NO_TRIGGER = "1, no trigger word"
TWICE = {"unet_lr": 1e-3, "text_encoder_lr": 1e-3}
CANDIDATES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "twice the rates": TWICE,
    "twice the rates, tag dropout": TWICE | {"caption_tag_dropout_rate": 0.8},
    "twice the UNet's rate, a fifth of the text encoders'": {"unet_lr": 1e-3, "text_encoder_lr": 1e-4},
    "twice the UNet's rate, no text encoders": {"unet_lr": 1e-3, "text_encoder_lr": 0.0},
}

# What a well-trained LoRA of a style should reach.
MIN_STYLE, MIN_CONTENT, MAX_STYLE_OFF = 0.8, 2 / 3, 0.05


def criteria(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return by how much each goal is exceeded (or missed, if negative), from the figures of `styles.judge_lora`.

    Style and content at strength 0.7 are compared with the line between their values at 0 and 1.
    """
    style, content = figures["style"], figures["content kept"]

    def over_line(by_strength: Mapping[str, float]) -> float:
        return by_strength["0.7"] - (0.3 * by_strength["0"] + 0.7 * by_strength["1"])

    margins = {
        "style at 1": style["1"] - MIN_STYLE,
        "content at 1": content["1"] - MIN_CONTENT,
        "style at 0.7": over_line(style),
        "content at 0.7": over_line(content),
        "style at 0": MAX_STYLE_OFF - style["0"],
        "content without the trigger word": content[NO_TRIGGER] - MIN_CONTENT,
    }
    return {name: round(margin, 3) for name, margin in margins.items()}


def shortfall(figures: Mapping[str, Mapping[str, float]]) -> float:
    """Return the sum of the shares by which the goals are missed; 0 if all are reached."""
    return round(sum(max(0.0, -margin) for margin in criteria(figures).values()), 3)


def search(work: Path, pack: Path) -> None:
    """Judge every candidate on the styles in CHOSEN_ON; write WORK/recipes.json, best first. Resumable."""
    judges = Judges.load(work, pack, CHOSEN_ON)
    found: dict[str, dict[str, Any]] = {}
    for name, changes in CANDIDATES.items():
        folder = work / "recipes" / re.sub(r"\W+", "-", name)
        judged = judge_styles(
            judges, base=pack / "base", home=Home(work / "home"), folder=folder, counts=(COUNT,), changes=changes
        )
        by_style = {style: judged[style][f"{COUNT} images"] for style in CHOSEN_ON}
        missed = {style: shortfall(figures) for style, figures in by_style.items()}
        found[name] = {"changes": changes, "shortfall": round(sum(missed.values()), 3), "by style": missed}
        found = dict(sorted(found.items(), key=lambda item: float(item[1]["shortfall"])))
        progress.write_json(found, work / "recipes.json")
        progress.log(f"recipes: {name}: {found[name]}")
