"""A plan as a picture of 1200 x 675 px, to post beside images."""

from __future__ import annotations

import unicodedata
from functools import cache
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from lora_studio.planning.planned_run import Plan
from lora_studio.planning.recommend import times_as_text
from lora_studio.settings.declare import setting_label
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.values import format_value
from lora_studio.ui.widgets.html import Tile
from lora_studio.ui.widgets.plan_summary import plan_figures

WIDTH, HEIGHT = 1200, 675
MARGIN, GAP = 56, 20
TILE_TOP, TILE_HEIGHT = 176, 142
RECIPE_TOP, ROW = 346, 36
ROWS, COLUMNS = 6, 2
# First those that posts about LoRAs name, then what else differs from the guide's defaults.
MAIN_SETTINGS = (
    *("network_type", "network_dim", "network_alpha", "unet_lr", "text_encoder_lr", "optimizer"),
    *("batch_size", "epochs", "repeats", "resolution"),
)
IN_ASCII = str.maketrans({"–": "-", "—": "-", "×": "x", "·": "-"})
PAPER, INK, MUTED, TILE, ACCENT = "#0f172a", "#f8fafc", "#cbd5e1", "#1e293b", "#a78bfa"


def plan_picture(plan: Plan, project: str) -> bytes:
    """Draw a plan as a PNG: base and dataset, its figures and the main settings."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 10, HEIGHT), fill=ACCENT)
    _text(draw, (MARGIN, 48), "LoRA plan", 26, ACCENT, WIDTH - 2 * MARGIN)
    draw.text((WIDTH - MARGIN, 48), "LoRA Studio", MUTED, _font(26), anchor="ra")
    _text(draw, (MARGIN, 84), f"{plan.kind.value.capitalize()} LoRA on {plan.base}", 42, INK, WIDTH - 2 * MARGIN)
    images = f"{plan.images:,} images{' expected' if plan.assumed else ''}"
    _text(draw, (MARGIN, 136), f"{project} - {images}, a {plan.tier.name} set", 22, MUTED, WIDTH - 2 * MARGIN)
    for index, figure in enumerate(plan_figures(plan)):
        _tile(draw, index, figure)
    for index, (name, value) in enumerate(_settings(plan)):
        column, row = divmod(index, ROWS)
        width = (WIDTH - 2 * MARGIN - GAP) // COLUMNS
        _setting(draw, (MARGIN + column * (width + GAP), RECIPE_TOP + row * ROW), width, name, value)
    _text(draw, (MARGIN, HEIGHT - 88), _cautions(plan), 20, MUTED, WIDTH - 2 * MARGIN)
    _text(draw, (MARGIN, HEIGHT - 56), "Rough estimates.", 20, MUTED, WIDTH - 2 * MARGIN)
    data = BytesIO()
    image.save(data, "PNG", optimize=True)
    return data.getvalue()


def _settings(plan: Plan) -> list[tuple[str, str]]:
    differing = [name for name in plan.recipe.non_defaults() if name not in (*MAIN_SETTINGS, "sample_prompts")]
    found = []
    for name in [*MAIN_SETTINGS, *differing][: ROWS * COLUMNS]:
        value = getattr(plan.recipe, name)
        text = times_as_text(plan.repeats) if name == "repeats" else " / ".join(format_value(value).splitlines())
        found.append((setting_label(Recipe, name), text))
    return found


def _cautions(plan: Plan) -> str:
    count = len(plan.warnings)
    if not count:
        return "Nothing to check: the guide has no objections."
    return f"To check: {plan.warnings[0].message}" + (f" And {count - 1} more." if count > 1 else "")


def _tile(draw: ImageDraw.ImageDraw, index: int, tile: Tile) -> None:
    width = (WIDTH - 2 * MARGIN - 3 * GAP) // 4
    x = MARGIN + index * (width + GAP)
    draw.rounded_rectangle((x, TILE_TOP, x + width, TILE_TOP + TILE_HEIGHT), 10, fill=TILE)
    _text(draw, (x + 18, TILE_TOP + 14), tile.label, 20, MUTED, width - 36)
    _text(draw, (x + 18, TILE_TOP + 42), tile.figure, 36, INK, width - 36)
    for row, line in enumerate(_two_lines(draw, tile.note, 17, width - 36)):
        _text(draw, (x + 18, TILE_TOP + 88 + 22 * row), line, 17, MUTED, width - 36)


def _setting(draw: ImageDraw.ImageDraw, at: tuple[int, int], width: int, name: str, value: str) -> None:
    x, y = at
    draw.line((x, y + ROW - 6, x + width, y + ROW - 6), fill=TILE)
    _text(draw, (x, y), name, 21, MUTED, width // 2)
    _text(draw, (x + width // 2 + 12, y), value, 21, INK, width // 2 - 12)


def _text(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, color: str, width: int) -> None:
    """Draw one line of text, cut off with dots where it is wider than `width`."""
    font = _font(size)
    line = _in_ascii(" ".join(text.split()))
    while line and draw.textlength(line, font) > width:
        line = line.removesuffix("...")[:-1].rstrip() + "..."
    draw.text(at, line, color, font)


def _two_lines(draw: ImageDraw.ImageDraw, text: str, size: int, width: int) -> tuple[str, str]:
    """Break a text where its first line is full."""
    words = text.split()
    count = len(words)
    while count > 1 and draw.textlength(_in_ascii(" ".join(words[:count])), _font(size)) > width:
        count -= 1
    return " ".join(words[:count]), " ".join(words[count:])


def _in_ascii(text: str) -> str:
    """Return a text with the characters that Pillow's own font has; others become question marks."""
    decomposed = unicodedata.normalize("NFKD", text.translate(IN_ASCII))
    return "".join(mark for mark in decomposed if not unicodedata.combining(mark)).encode("ascii", "replace").decode()


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
