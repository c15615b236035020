"""PNG files with their generation parameters, in the format of A1111."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, PngImagePlugin

from lora_studio.files import write_atomic

KEY = "parameters"
CPU_NOISE = {"RNG": "CPU"}  # A1111's setting for noise that is drawn on the CPU, as all images of the studio have


def infotext(prompt: str, negative_prompt: str, settings: dict[str, str | int | float]) -> str:
    """Return A1111's infotext: prompt, a `Negative prompt:` line if there is one, and the settings in one line."""
    lines = [prompt]
    if negative_prompt:
        lines.append(f"Negative prompt: {negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def image_settings(
    *, steps: int, sampler: str, guidance: float, seed: int, size: tuple[int, int]
) -> dict[str, str | int | float]:
    """Return the settings that every image has, by A1111's names; `sampler` is A1111's too, `size` is in px."""
    return {
        "Steps": steps,
        "Sampler": sampler,
        "CFG scale": f"{guidance:g}",
        "Seed": seed,
        "Size": f"{size[0]}x{size[1]}",
    }


def save_png(image: Image.Image, path: Path, parameters: str, **texts: str) -> None:
    """Write an image with its parameters, and further texts by their keywords, atomically."""
    info = PngImagePlugin.PngInfo()
    # A1111 reads iTXt as well as tEXt; only iTXt holds more than Latin-1.
    for name, text in {KEY: parameters, **texts}.items():
        info.add_itxt(name, text)
    write_atomic(path, lambda temporary: image.save(temporary, "PNG", pnginfo=info))


def read_parameters(path: Path) -> str | None:
    """Return the parameters of an image; None if it has none or cannot be decoded completely."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            return image.info.get(KEY)
    except (OSError, SyntaxError, ValueError):
        return None


def read_text(path: Path, keyword: str) -> str | None:
    """Return a text of an image without decoding it; None if it has none or is not a PNG file."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get(keyword)
    except (OSError, SyntaxError, ValueError):
        return None


def load_png(path: Path) -> Image.Image | None:
    """Return a decoded image in RGB; None if it cannot be decoded completely."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError):
        return None


def _quoted(value: str | int | float) -> str:
    """Quote a value as A1111 does if it contains a separator."""
    text = str(value)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if any(c in text for c in ',\n:"') else text
