from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from lora_studio.models.png_info import save_png
from lora_studio.sampling.grid import EMPTY, MAX_PIXELS, MAX_SIDE, GridRow, GridSection, draw_grid

RED, GREEN = (200, 30, 30), (30, 200, 30)


def save_image(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (200, 200)) -> Path:
    save_png(Image.new("RGB", size, color), path, "x")
    return path


def boxes(image: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Return the bounding box of a colour: left, top, right, bottom."""
    rows, columns = np.nonzero((np.asarray(image) == color).all(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def test_grid_has_strengths_down_and_prompts_across(tmp_path: Path) -> None:
    red, green = save_image(tmp_path / "r.png", RED), save_image(tmp_path / "g.png", GREEN)
    rows = [GridRow("0 (no LoRA)", [red, None]), GridRow("1", [None, green])]
    grid = draw_grid("title", "subtitle", ["one", "two"], [GridSection("", rows)])
    left, right = boxes(grid, RED), boxes(grid, GREEN)
    assert (left[2] - left[0], left[3] - left[1]) == (200, 200)
    assert right[0] > left[2]
    assert right[1] > left[3]
    empty = tuple(int(EMPTY[i : i + 2], 16) for i in (1, 3, 5))
    frame = boxes(grid, empty)
    assert frame[0] == left[0] + 1
    assert frame[1] == left[1] + 1
    assert frame[2] == right[2] - 1
    above = np.asarray(grid)[: left[1], left[0] : right[2]]
    assert (above < 128).any()  # the prompts' ink
    assert (np.asarray(grid)[left[1] : left[3], : left[0]] < 128).any()  # the row's label


def test_long_labels_of_rows_are_wrapped(tmp_path: Path) -> None:
    path = save_image(tmp_path / "r.png", RED)
    rows = [GridRow("{trigger}, a prompt with many words, " * 4, [path])]
    grid = draw_grid("t", "s", ["1"], [GridSection("", rows)])
    assert grid.width < 200 * 3
    label = (np.asarray(grid)[boxes(grid, RED)[1] : boxes(grid, RED)[3], : boxes(grid, RED)[0]] < 128).any(axis=(1, 2))
    assert label.sum() > 60  # px of ink in more than two lines


def test_small_images_are_enlarged_until_labels_are_readable(tmp_path: Path) -> None:
    path = save_image(tmp_path / "r.png", RED, (64, 64))
    box = boxes(draw_grid("t", "s", ["p"], [GridSection("", [GridRow("1", [path])])]), RED)
    assert (box[2] - box[0], box[3] - box[1]) == (192, 192)


def test_sections_are_arranged_side_by_side_to_fit_a_screen(tmp_path: Path) -> None:
    path = save_image(tmp_path / "r.png", RED)
    section = GridSection("some LoRA", [GridRow(f"{row}", [path]) for row in range(7)])
    width, height = draw_grid("t", "s", ["p"], [section] * 4).size
    assert 0.5 < width / height < 3


def test_grid_stays_within_the_size_limits(tmp_path: Path) -> None:
    path = save_image(tmp_path / "r.png", RED, (1024, 1024))
    rows = [GridRow(f"{row}", [path if row == 0 else None] * 8) for row in range(32)]
    grid = draw_grid("t", "s", ["a prompt"] * 8, [GridSection("x", rows)] * 3)
    assert max(grid.size) <= MAX_SIDE
    assert grid.width * grid.height <= MAX_PIXELS
    assert max(grid.size) > 6000


def test_long_texts_do_not_widen_the_grid(tmp_path: Path) -> None:
    path = save_image(tmp_path / "r.png", RED)
    long = "masterpiece, " * 60
    rows = [GridRow("1", [path, path])]
    grid = draw_grid(long, long, [long, "w" * 400], [GridSection(long, rows)])
    plain = draw_grid("t", "s", ["p", "q"], [GridSection("h", rows)])
    assert grid.width == plain.width
    assert (np.asarray(grid)[:, -20:] == 255).all()
    assert boxes(grid, RED)[2] == boxes(plain, RED)[2]


def test_unreadable_image_is_an_empty_frame(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    rows = [GridRow("1", [tmp_path / "bad.png", tmp_path / "gone.png"])]
    grid = draw_grid("t", "s", ["", "日本語"], [GridSection("", rows)])
    empty = tuple(int(EMPTY[i : i + 2], 16) for i in (1, 3, 5))
    assert boxes(grid, empty)[2] - boxes(grid, empty)[0] > 2 * 150
