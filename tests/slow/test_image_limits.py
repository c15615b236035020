"""A small image file that unpacks to gigabytes is read in another process, within limits."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_an_image_that_unpacks_to_gigabytes_takes_little_memory_of_the_app(tmp_path: Path) -> None:
    """Read a PNG of 0.2 MB with 9999 x 9999 px of 16 bits, which once took 2.5 GB and 18 s here."""
    pytest.importorskip("resource")
    side, path = 9999, tmp_path / "bomb.png"

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(bytes(1 + 2 * side)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    program = (
        "import sys; from pathlib import Path; from lora_studio.dataset.scan import scan_image; "
        "from lora_studio.device import peak_rss_bytes; info, _ = scan_image(Path(sys.argv[1])); "
        "print(info.width, peak_rss_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    width, peak = map(int, done.stdout.split())
    assert width == side
    assert peak < 250e6
