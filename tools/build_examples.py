"""Build the example images: `python tools/build_examples.py --modules node_modules`.

Writes examples/inkstamp from npm's @iconify-json/fluent-emoji-high-contrast: images in black on white, including some
with flaws for the curator to find. README.md and LICENSE in that folder are written by hand.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from demo_pack.pictures import draw_icon, on_white
from PIL import Image, ImageOps

EXAMPLES = Path(__file__).parent.parent / "examples"
ICON_SET = "fluent-emoji-high-contrast"
SIZE = 768  # px
DRAWN = 640  # px, the width of the icon itself
GREYS = 16  # levels: enough for antialiased edges, in a third of the bytes

PICTURES = (
    "bicycle",
    "butterfly",
    "cactus",
    "crown",
    "dog-face",
    "elephant",
    "fish",
    "guitar",
    "hamburger",
    "key",
    "light-bulb",
    "mushroom",
    "owl",
    "pineapple",
    "pizza",
    "robot",
    "rocket",
    "sailboat",
    "smiling-face-with-sunglasses",
    "thinking-face",
)
SMALL, SMALL_SIZE = "umbrella", 384  # px: too small to train on
RESIZED, RESIZED_SIZE = "rocket", 576  # px
RESAVED, QUALITY = "owl", 80
MIRRORED = "guitar"


def draw(icons: dict, name: str) -> Image.Image:
    """Draw an icon in black on white, as a greyscale image of SIZE x SIZE px."""
    side = float(icons["width"])
    icon = icons["icons"][name]
    box = (icon.get("left", 0), icon.get("top", 0), icon.get("width", side), icon.get("height", side))
    rgba = draw_icon(icon["body"], box, drawn=DRAWN, resolution=SIZE)
    return Image.fromarray(on_white(rgba[np.newaxis])[0]).convert("L")


def save_png(image: Image.Image, path: Path) -> None:
    """Write a greyscale PNG with GREYS levels, four bits per pixel."""
    levels = image.point(lambda value: round(value * (GREYS - 1) / 255)).convert("P")
    levels.putpalette([value for level in range(GREYS) for value in (round(level * 255 / (GREYS - 1)),) * 3])
    levels.save(path, optimize=True, bits=4)


def build(modules: Path, folder: Path) -> None:
    icons = json.loads((modules / "@iconify-json" / ICON_SET / "icons.json").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        save_png(draw(icons, name), folder / f"{name}.png")
    for name in (*PICTURES, SMALL):
        (folder / f"{name}.txt").write_text(name.replace("-", " "), encoding="utf-8")
    for name, side, suffix in ((SMALL, SMALL_SIZE, ""), (RESIZED, RESIZED_SIZE, "-resized")):
        resized = draw(icons, name).resize((side, side), Image.Resampling.LANCZOS)
        save_png(resized, folder / f"{name}{suffix}.png")
    draw(icons, RESAVED).save(folder / f"{RESAVED}-resaved.jpg", quality=QUALITY, optimize=True)
    save_png(ImageOps.mirror(draw(icons, MIRRORED)), folder / f"{MIRRORED}-mirrored.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", type=Path, default=Path("node_modules"), help="where npm installed the icon set")
    parser.add_argument("--out", type=Path, default=EXAMPLES / "inkstamp")
    args = parser.parse_args()
    build(args.modules, args.out)


if __name__ == "__main__":
    main()
