"""The installed libraries: which there are, and what to say where they do not fit together."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from lora_studio.errors import InputError

VERSION = "0.1.0"
TOGETHER = ("torch", "diffusers", "transformers", "peft", "accelerate")  # they rely on one another's insides


def installed_version(name: str) -> str | None:
    """The version of a library, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def incompatible_libraries_error(reason: object) -> InputError:
    """The error for libraries that do not work with one another, with all their versions."""
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    found = ", ".join(f"{name} {installed_version(name) or 'missing'}" for name in TOGETHER)
    return InputError(
        f"The installed libraries do not work together: {lines[0].rstrip('.')}.",
        f"Run pip install --upgrade -r requirements.txt (installed: {found}).",
        code="libraries",
    )
