"""Write a few images with their words for the tests of the pack; no model was trained on them."""

from pathlib import Path

import numpy as np
from PIL import Image

from demo_pack import pictures, progress, unet

COUNT = 48  # of each group
COLUMNS = 12


def write(work: Path, folder: Path) -> None:
    """Write FOLDER/NAME.webp, a lossless sheet of COUNT images of 128 px, and their words to FOLDER/NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = {
        "held-out": pictures.TRAINING_SETS,
        "flat": ["fluent-emoji-flat"],
        "contrast": [pictures.HELD_OUT_SETS[1]],
    }
    for name, sets in groups.items():
        words, rgba = pictures.load(work, sets)
        usable = [i for i, word in enumerate(words) if not word.is_flag and (word.held_out or name != "held-out")]
        chosen = [usable[k] for k in np.linspace(0, len(usable) - 1, COUNT).astype(int)]
        rgb = pictures.on_white(rgba[chosen])
        sheet = np.concatenate([np.concatenate(list(rgb[i : i + COLUMNS]), 1) for i in range(0, COUNT, COLUMNS)])
        Image.fromarray(sheet).save(folder / f"{name}.webp", lossless=True, quality=100, method=6)
        rows = [
            {"label": words[i].label, "subgroup": words[i].subgroup, "tags": words[i].tags, "colours": shades}
            for i, shades in zip(chosen, unet.colour_words(rgba[chosen]), strict=True)
        ]
        progress.write_json(rows, folder / f"{name}.json")
