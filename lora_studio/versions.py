"""Versions of the studio and of the installed libraries, and the error for libraries that do not work together."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from lora_studio.errors import InputError

VERSION = "0.1.0"
# These depend on one another's private API.
INTERDEPENDENT = ("torch", "diffusers", "transformers", "peft", "accelerate")


def installed_version(name: str) -> str | None:
    """Return the version of a library; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def incompatible_libraries_error(reason: object) -> InputError:
    """Return the error for libraries that do not work together; it lists their versions."""
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    found = ", ".join(f"{name} {installed_version(name) or 'missing'}" for name in INTERDEPENDENT)
    return InputError(
        f"The installed libraries do not work together: {lines[0].rstrip('.')}.",
        f"Run pip install --upgrade -r requirements.txt (installed: {found}).",
        code="libraries",
    )
