"""Draw a sweep as one image: rows and columns of two axes, a section per page of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lora_studio.models.png_info import load_png

MAX_SIDE = 12_000  # px; browsers and image viewers open this
MAX_PIXELS = 60_000_000
MIN_CELL = 8  # px, side of a cell
MIN_READABLE_CELL = 160  # px, at which labels can be read
HEADER_LINES = 3
ASPECT = 4 / 3  # width / height that fills a screen best

PAPER, INK, MUTED, FRAME, EMPTY = "#ffffff", "#1e293b", "#64748b", "#cbd5e1", "#f1f5f9"


@dataclass(frozen=True)
class GridRow:
    """A row: its label and the path of an image per column, None if it is missing."""

    label: str
    images: Sequence[Path | None]


@dataclass(frozen=True)
class GridSection:
    """The rows of one page. `heading` may be empty if there is only one section."""

    heading: str
    rows: Sequence[GridRow]


@dataclass(frozen=True)
class _Layout:
    """Distances in px. Sections are arranged in `across` columns, filled row by row."""

    cell: tuple[int, int]
    across: int
    font: int
    gap: int
    margin: int
    label: int
    top: int
    head: int
    heading: int
    block: tuple[int, int]
    size: tuple[int, int]
    headers: Sequence[Sequence[str]]


def draw_grid(title: str, subtitle: str, columns: Sequence[str], sections: Sequence[GridSection]) -> Image.Image:
    """Draw the grid under the labels of its columns.

    Cells have the size of the images, or less if the grid would be too large to open. Missing or unreadable images
    leave an empty frame.
    """
    native = _native_size(sections)
    layouts = [_fit(native, across, columns, sections) for across in range(1, len(sections) + 1)]
    layout = max(layouts, key=lambda layout: (layout.cell, -abs(math.log(layout.size[0] / layout.size[1] / ASPECT))))
    canvas = Image.new("RGB", layout.size, PAPER)
    draw = ImageDraw.Draw(canvas)
    _title(draw, layout, title, subtitle)
    for number, section in enumerate(sections):
        down, right = divmod(number, layout.across)
        x = layout.margin + right * layout.block[0]
        y = layout.top + layout.head + down * layout.block[1]
        if down == 0:
            _column_labels(draw, layout, x)
        _section(canvas, draw, layout, section, (x, y))
    return canvas


def _fit(native: tuple[int, int], across: int, columns: Sequence[str], sections: Sequence[GridSection]) -> _Layout:
    """Return the layout with the largest cells that stays within MAX_SIDE and MAX_PIXELS."""
    scale = 1.0
    while True:
        cell = (max(MIN_CELL, int(native[0] * scale)), max(MIN_CELL, int(native[1] * scale)))
        layout = _lay_out(cell, across, columns, sections)
        width, height = layout.size
        if (max(width, height) <= MAX_SIDE and width * height <= MAX_PIXELS) or max(cell) == MIN_CELL:
            return layout
        scale *= 0.95


def _lay_out(cell: tuple[int, int], across: int, columns: Sequence[str], sections: Sequence[GridSection]) -> _Layout:
    font = max(12, min(40, round(min(cell) / 16)))
    line, gap, margin = _line(font), max(4, font // 3), 2 * font
    rows = max(len(section.rows) for section in sections)
    longest = max(int(_font(font).getlength(row.label)) for section in sections for row in section.rows)
    label = font + min(longest, cell[0])
    headers = [_wrap(column, font, cell[0] - font // 2, HEADER_LINES) for column in columns]
    heading = 2 * line if any(section.heading for section in sections) else 0
    head = max(len(lines) for lines in headers) * line + gap
    top = margin + 4 * line
    block = (label + len(columns) * (cell[0] + gap) + font, heading + rows * (cell[1] + gap))
    down = -(-len(sections) // across)
    size = (2 * margin + across * block[0] - font, top + head + down * block[1] + margin)
    return _Layout(cell, across, font, gap, margin, label, top, head, heading, block, size, headers)


def _title(draw: ImageDraw.ImageDraw, layout: _Layout, title: str, subtitle: str) -> None:
    room = layout.size[0] - 2 * layout.margin
    large, font = _font(round(layout.font * 1.4)), _font(layout.font)
    draw.text((layout.margin, layout.margin), _ellipsis(title, large, room), font=large, fill=INK)
    below = layout.margin + 2 * _line(layout.font)
    draw.text((layout.margin, below), _ellipsis(subtitle, font, room), font=font, fill=MUTED)


def _column_labels(draw: ImageDraw.ImageDraw, layout: _Layout, x: int) -> None:
    """Draw the labels of the columns above one column of sections, aligned to the bottom."""
    line = _line(layout.font)
    bottom = layout.top + layout.head - layout.gap
    for column, lines in enumerate(layout.headers):
        left = x + layout.label + column * (layout.cell[0] + layout.gap)
        for number, text in enumerate(lines):
            draw.text((left, bottom - (len(lines) - number) * line), text, font=_font(layout.font), fill=INK)


def _section(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, layout: _Layout, section: GridSection, corner: tuple[int, int]
) -> None:
    x, y = corner
    font = _font(layout.font)
    if layout.heading:
        text = _ellipsis(section.heading, font, layout.block[0] - layout.font)
        draw.text((x, y + layout.heading - layout.gap), text, font=font, fill=INK, anchor="lb")
        y += layout.heading
    for row in section.rows:
        left = x + layout.label
        _row_label(draw, layout, row.label, (left - layout.font // 2, y + layout.cell[1] // 2))
        for path in row.images:
            _paste(canvas, draw, path, (left, y), layout.cell)
            left += layout.cell[0] + layout.gap
        y += layout.cell[1] + layout.gap


def _row_label(draw: ImageDraw.ImageDraw, layout: _Layout, text: str, right_middle: tuple[int, int]) -> None:
    """Draw the label of a row in as many lines as it needs and the row has."""
    line = _line(layout.font)
    lines = _wrap(text, layout.font, layout.label - layout.font, max(1, layout.cell[1] // line))
    x, y = right_middle[0], right_middle[1] - (len(lines) - 1) * line / 2
    for number, part in enumerate(lines):
        draw.text((x, y + number * line), part, font=_font(layout.font), fill=INK, anchor="rm")


def _paste(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, path: Path | None, corner: tuple[int, int], cell: tuple[int, int]
) -> None:
    image = load_png(path) if path else None
    if image is None:
        box = (*corner, corner[0] + cell[0] - 1, corner[1] + cell[1] - 1)
        draw.rectangle(box, fill=EMPTY, outline=FRAME)
        return
    canvas.paste(image.resize(cell, Image.Resampling.LANCZOS) if image.size != cell else image, corner)


def _native_size(sections: Sequence[GridSection]) -> tuple[int, int]:
    """Return the size of the images, or the smallest multiple of it at which labels can be read."""
    images = (load_png(path) for section in sections for row in section.rows for path in row.images if path)
    default = (MIN_READABLE_CELL, MIN_READABLE_CELL)
    size = next((image.size for image in images if image is not None), default)
    factor = -(-MIN_READABLE_CELL // min(size)) if min(size) < MIN_READABLE_CELL else 1
    return size[0] * factor, size[1] * factor


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _line(size: int) -> int:
    """Return the height of a line of text in px."""
    ascent, descent = _font(size).getmetrics()
    return ascent + descent + size // 6


def _wrap(text: str, size: int, width: int, max_lines: int) -> list[str]:
    """Wrap text into lines of at most `width` px; too long words and text after the last line end in an ellipsis."""
    font = _font(size)
    lines = [""]
    for word in text.split() or ["(empty)"]:
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], " ".join(lines[max_lines - 1 :])]
    return [_ellipsis(line, font, width) for line in lines]


def _ellipsis(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle].rstrip() + "…") <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"
