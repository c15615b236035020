"""Emoji images and their words: SVG icon sets rendered to RGBA, joined by name with emojibase's labels and tags."""

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RESOLUTION = 128  # px, the native resolution of the base
DRAWN = 116  # px, the width of the icon itself; the rest is margin
TRAINING_SETS = ("noto", "twemoji")  # of the base
TAGGER_SETS = (  # of tagger and captioner
    *TRAINING_SETS,
    "emojione",
    "noto-v1",
    "fxemoji",
    "emojione-monotone",
)
HELD_OUT_SETS = ("fluent-emoji-flat", "fluent-emoji-high-contrast")  # not used to train any model of the pack
FLAGS = ("country flag", "subdivision flag")  # used to train the VAE only
HELD_OUT_FRACTION = 0.04  # of the emoji, by label: the same in every set


@dataclasses.dataclass(frozen=True)
class Picture:
    """A rendered emoji; `row` is its index in the array of its set."""

    set_name: str
    row: int
    label: str
    subgroup: str
    tags: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        """True if this emoji is not used for any training, decided by a hash of its label."""
        digest = hashlib.sha256(self.label.encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT_FRACTION

    @property
    def is_flag(self) -> bool:
        """True for flags of countries and regions."""
        return self.subgroup in FLAGS


def _slug(text: str) -> str:
    """Keep only letters and digits: some sets write dashes between words, others do not."""
    return re.sub(r"[^a-z0-9]+", "", text.lower())


def _emoji_words(modules: Path) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Read emojibase-data: slug -> (label, subgroup, tags), without emoji that have no subgroup (components)."""
    english = modules / "emojibase-data" / "en"
    groups = json.loads((english / "messages.json").read_text(encoding="utf-8"))["subgroups"]
    subgroup = {group["order"]: group["key"].replace("-", " ") for group in groups}
    words = {}
    for emoji in json.loads((english / "data.json").read_text(encoding="utf-8")):
        if "subgroup" not in emoji:
            continue
        label = emoji["label"].lower().replace("\u201c", "").replace("\u201d", "").replace("\u2019", "'")
        tags = tuple(tag.lower() for tag in emoji.get("tags", []) if re.fullmatch(r"[A-Za-z][A-Za-z' -]+", tag))
        words[_slug(emoji["label"])] = (label.replace(",", ""), subgroup[emoji["subgroup"]], tags)
    return words


def draw_icon(
    body: str, box: tuple[float, float, float, float], *, drawn: int = DRAWN, resolution: int = RESOLUTION
) -> NDArray[np.uint8]:
    """Draw an icon, `drawn` px wide with a margin, as straight-alpha RGBA, uint8 [resolution, resolution, 4]."""
    import resvg_py

    view = " ".join(f"{value:g}" for value in box)
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{drawn}" height="{drawn}" viewBox="{view}">{body}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=drawn, height=drawn, skip_system_fonts=True))
    icon = Image.open(io.BytesIO(png)).convert("RGBA")
    canvas = np.zeros((resolution, resolution, 4), np.uint8)
    margin = (resolution - drawn) // 2
    canvas[margin : margin + icon.height, margin : margin + icon.width] = np.asarray(icon)
    return canvas


def render(modules: Path, work: Path, report: Callable[[str], None]) -> None:
    """Render every missing set to WORK/NAME.npy (uint8 [N, 128, 128, 4]) and WORK/NAME.json (words)."""
    words = _emoji_words(modules)
    for name in (*TAGGER_SETS, *HELD_OUT_SETS):
        listing = work / f"{name}.json"
        if listing.exists():
            continue
        icons = json.loads((modules / "@iconify-json" / name / "icons.json").read_text(encoding="utf-8"))
        images, rows = [], []
        for slug, icon in sorted(icons["icons"].items()):
            if (slug := _slug(slug)) not in words:
                continue
            box = (
                icon.get("left", 0),
                icon.get("top", 0),
                icon.get("width", icons.get("width", 16)),
                icon.get("height", icons.get("height", 16)),
            )
            label, subgroup, tags = words[slug]
            images.append(draw_icon(icon["body"], box))
            rows.append({"label": label, "subgroup": subgroup, "tags": tags})
        np.save(work / f"{name}.npy", np.stack(images))
        listing.write_text(json.dumps(rows), encoding="utf-8")
        report(f"render: {name}: {len(rows)} pictures of {len(icons['icons'])} icons")


def load(work: Path, names: Sequence[str]) -> tuple[list[Picture], NDArray[np.uint8]]:
    """Load the emoji of the named sets and their images, uint8 RGBA [N, 128, 128, 4], in the same order."""
    pictures, arrays = [], []
    for name in names:
        rows = json.loads((work / f"{name}.json").read_text(encoding="utf-8"))
        pictures += [Picture(name, i, row["label"], row["subgroup"], tuple(row["tags"])) for i, row in enumerate(rows)]
        arrays.append(np.load(work / f"{name}.npy", mmap_mode="r"))
    return pictures, np.concatenate(arrays)


def on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Composite straight-alpha RGBA [..., 4] over white, uint8 [..., 3]."""
    out = np.empty((*rgba.shape[:-1], 3), np.uint8)
    for i in range(len(rgba)):  # one at a time: the float copy of a whole set would take gigabytes
        alpha = rgba[i, ..., 3:].astype(np.float32) / 255
        out[i] = np.round(rgba[i, ..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return out
