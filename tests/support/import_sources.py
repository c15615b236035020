"""Sources of an import: images, zips, and the files of a folder."""

from __future__ import annotations

import zipfile
from pathlib import Path

from PIL import Image


def draw(path: Path, shade: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    """Write an image of one colour, which `shade` sets, with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 99, 200)).save(path)
    return path


def pack(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """Write a zip with these entries, by name, and return its path."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def png(tmp_path: Path, shade: int = 0) -> bytes:
    """Return the content of a PNG file."""
    return draw(tmp_path / "scratch.png", shade).read_bytes()


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of each file below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
