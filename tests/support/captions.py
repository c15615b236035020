"""A small folder of images with captions, and its content."""

from __future__ import annotations

from pathlib import Path


def make_caption_folder(folder: Path) -> Path:
    """Write four images: two with plain captions, one with a caption in Latin-1, one without; return the folder."""
    for name, data in (("a", b"ohwx, smile, day"), ("b", b"ohwx, smiley"), ("c", "ohwx, café".encode("latin-1"))):
        (folder / f"{name}.txt").write_bytes(data)
    for name in "abcd":
        (folder / f"{name}.png").write_bytes(name.encode())
    return folder


def images_in(folder: Path) -> list[Path]:
    """Return the images of a folder."""
    return sorted(folder.glob("*.png"))


def caption_contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each caption by the name of its image without suffix."""
    return {file.stem: file.read_bytes() for file in sorted(folder.glob("*.txt"))}
