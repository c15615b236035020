"""Write a wheel of the running version of the studio, so that a job runs the same code as this computer.

The files are those of the imported package, in a checkout or installed, so no build tool is needed.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from lora_studio.files import shipped_folder
from lora_studio.versions import VERSION

PACKAGE = Path(__file__).resolve().parent.parent
WHEEL_NAME = f"lora_studio-{VERSION}-py3-none-any.whl"
SHIPPED = ("presets", "examples")


def build_wheel() -> bytes:
    """Return the content of the wheel, the same for the same files (PyPA's binary distribution format)."""
    info = f"lora_studio-{VERSION}.dist-info"
    data = f"lora_studio-{VERSION}.data/data/share/lora-studio"
    files = {f"lora_studio/{name}": content for name, content in _contents(PACKAGE).items()}
    for folder in SHIPPED:
        found = _contents(shipped_folder(folder)) if shipped_folder(folder).is_dir() else {}
        files |= {f"{data}/{folder}/{name}": content for name, content in found.items()}
    requirements = "".join(f"Requires-Dist: {line}\n" for line in _requirements())
    metadata = f"Metadata-Version: 2.1\nName: lora-studio\nVersion: {VERSION}\n{requirements}"
    files[f"{info}/METADATA"] = metadata.encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: lora-studio\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = f"{info}/RECORD"
    lines = [f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in sorted(files.items())]
    files[record] = "".join([*lines, f"{record},,\n"]).encode()
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in files.items():
            wheel.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return target.getvalue()


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def _requirements() -> list[str]:
    """Return the requirements: of requirements.txt in a checkout, else of the installed package."""
    file = PACKAGE.parent / "requirements.txt"
    if (PACKAGE.parent / "pyproject.toml").is_file() and file.is_file():
        lines = (line.partition("#")[0].strip() for line in file.read_text("utf-8").splitlines())
        return [line for line in lines if line]
    try:
        return requires("lora-studio") or []
    except PackageNotFoundError:
        return []


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
