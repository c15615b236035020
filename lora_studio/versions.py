"""Versions of the studio and of the installed libraries, and the error for libraries that do not work together."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

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


def requirements() -> list[Requirement]:
    """Return the libraries that the studio needs on this platform: of the checkout, else of the installed package."""
    root = Path(__file__).resolve().parent.parent
    is_checkout = (root / "pyproject.toml").is_file()
    lines = (root / "requirements.txt").read_text("utf-8").splitlines() if is_checkout else requires("lora-studio")
    found = [Requirement(line) for line in lines or () if line.strip() and not line.startswith("#")]
    return [item for item in found if item.marker is None or item.marker.evaluate()]


def incompatible_libraries_error(reason: object) -> InputError:
    """Return the error for libraries that do not work together; it lists their versions."""
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    found = ", ".join(f"{name} {installed_version(name) or 'missing'}" for name in INTERDEPENDENT)
    return InputError(
        f"The installed libraries do not work together: {lines[0].rstrip('.')}.",
        f"Run pip install --upgrade -r requirements.txt (installed: {found}).",
        code="libraries",
    )
