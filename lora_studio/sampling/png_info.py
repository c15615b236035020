"""Pictures that carry how they were made, as A1111 and the sites that show such pictures read it."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, PngImagePlugin

from lora_studio.files import write_atomic

KEY = "parameters"


def infotext(prompt: str, negative_prompt: str, settings: dict[str, str | int | float]) -> str:
    """A1111's three parts: prompt, `Negative prompt:` line if there is one, and the settings in one line."""
    lines = [prompt]
    if negative_prompt:
        lines.append(f"Negative prompt: {negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def save_png(image: Image.Image, path: Path, parameters: str) -> None:
    """Write a picture with its parameters, whole or not at all."""
    info = PngImagePlugin.PngInfo()
    # A1111 reads iTXt as well as tEXt; only iTXt holds more than Latin-1.
    info.add_itxt(KEY, parameters)
    write_atomic(path, lambda temporary: image.save(temporary, "PNG", pnginfo=info))


def read_parameters(path: Path) -> str | None:
    """The parameters of a picture that can be decoded whole; None for anything else."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            return image.info.get(KEY)
    except (OSError, SyntaxError, ValueError):
        return None


def _quoted(value: str | int | float) -> str:
    """A1111 quotes values that its comma-separated line could not hold bare."""
    text = str(value)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if any(c in text for c in ',\n:"') else text
