"""Images that could take much memory or time are decoded in a process with limits, to the same result."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from lora_studio.dataset.images import decode as images
from lora_studio.dataset.images import header_cache
from lora_studio.dataset.images.decode import JPEG_SCAN, MAX_SCANS, decode, decode_here, image_info, thumbnail
from lora_studio.dataset.images.decode_pool import MEMORY_LIMIT, POOL, TIME_LIMIT, Child, DecodePool
from lora_studio.dataset.scan import scan_image
from lora_studio.errors import InputError

MIB = 2**20


@pytest.fixture(scope="module")
def single() -> Iterator[DecodePool]:
    """A pool of a single process."""
    pool = DecodePool(size=1)
    yield pool
    pool.close()


@pytest.fixture
def pool(single: DecodePool, monkeypatch: pytest.MonkeyPatch) -> DecodePool:
    """The pool that decodes all images of the test, whatever their size."""
    monkeypatch.setattr(images, "POOL", single)
    monkeypatch.setattr(images, "MAX_PIXELS_HERE", 0)
    return single


def gradient(mode: str = "RGB", size: tuple[int, int] = (640, 400)) -> Image.Image:
    bands = [Image.linear_gradient("L").resize(size).rotate(90 * turn, expand=False) for turn in range(4)]
    if mode == "I;16":
        return bands[0].convert("I").point(lambda value: value * 257).convert("I;16")
    return Image.merge("RGBA", bands).convert(mode) if mode == "RGBA" else Image.merge("RGB", bands[:3]).convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGB", ".jpg"), ("CMYK", ".jpg"), ("RGB", ".png"), ("RGBA", ".png"), ("I;16", ".png"), ("RGBA", ".webp")],
)
def test_the_result_is_the_same_as_in_this_process(tmp_path: Path, pool: DecodePool, mode: str, suffix: str) -> None:
    path = tmp_path / f"ünïcode\n{mode[0]}{suffix}"
    exif = Image.Exif()
    exif[images.ORIENTATION_TAG] = 6
    gradient(mode).save(path, exif=exif)
    for options in ({}, {"with_alpha": True}, {"min_side": 100}):
        inside, outside = decode_here(path, **options), decode(path, **options)
        assert outside.image.tobytes() == inside.image.tobytes()
        assert (outside.alpha is None) == (inside.alpha is None)
        if inside.alpha is not None and outside.alpha is not None:
            assert outside.alpha.tobytes() == inside.alpha.tobytes()
        for name in ("size", "format", "animated", "transparent", "high_bit_depth", "cmyk", "quantization"):
            assert getattr(outside, name) == getattr(inside, name), name
    assert decode(path).size == (400, 640)
    assert min(decode(path, min_side=100).image.size) < 200


def test_a_scan_finds_the_same(tmp_path: Path, pool: DecodePool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    gradient(size=(1300, 900)).save(path)
    with monkeypatch.context() as patch:
        patch.setattr(images, "MAX_PIXELS_HERE", 10**9)
        here = scan_image(path)
    there = scan_image(path)
    assert there[0] == here[0]
    assert here[1] is not None
    assert there[1] is not None
    assert (there[1].fingerprint.hashes == here[1].fingerprint.hashes).all()
    assert (there[1].fingerprint.thumbnail == here[1].fingerprint.thumbnail).all()


def test_a_damaged_image_is_reported_and_the_next_one_read(tmp_path: Path, pool: DecodePool) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    gradient().save(good)
    bad.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    with pytest.raises(InputError, match=r"bad\.png") as outside:
        decode(bad)
    with pytest.raises(InputError) as inside:
        decode_here(bad)
    assert (outside.value.message, outside.value.code) == (inside.value.message, inside.value.code)
    assert decode(good).size == (640, 400)


def test_too_much_memory_is_refused_with_the_limit(tmp_path: Path, pool: DecodePool) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs RLIMIT_AS")
    big, small = tmp_path / "big.png", tmp_path / "small.png"
    Image.new("RGB", (6000, 6000)).save(big)
    gradient().save(small)
    pool.close()
    pool.memory = 64 * MIB
    try:
        info, decoded = image_info(big)
        assert decoded is None
        assert "0.1 GiB of memory" in info.issues[0].message
        assert decode(small).size == (640, 400)
        with pytest.raises(InputError, match="limit"):
            thumbnail(big, tmp_path / "thumbnails")
    finally:
        pool.close()
        pool.memory = MEMORY_LIMIT


def test_too_much_time_is_refused_with_the_limit(tmp_path: Path, pool: DecodePool) -> None:
    path = tmp_path / "a.png"
    gradient().save(path)
    pool.close()
    pool.seconds = 0.01
    with pytest.raises(InputError, match=r"limit of 0\.01 s"):
        decode(path)
    pool.seconds = TIME_LIMIT
    assert decode(path).size == (640, 400)


def test_an_idle_process_that_was_killed_is_replaced(tmp_path: Path, pool: DecodePool) -> None:
    path = tmp_path / "a.png"
    gradient().save(path)
    decode(path)
    pool._idle[0].process.kill()
    pool._idle[0].process.wait()
    assert decode(path).size == (640, 400)


def test_the_process_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc")
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    child = Child.start(512 * MIB)
    try:
        assert b"canary" not in Path(f"/proc/{child.process.pid}/environ").read_bytes()
    finally:
        child.end()


def test_a_forked_process_leaves_the_children_to_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    monkeypatch.setattr(POOL, "_idle", ["a child"])
    forked = os.fork()
    if forked == 0:
        os._exit(len(POOL._idle))
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 0
    assert POOL._idle == ["a child"]


@pytest.mark.parametrize("suffix", [".tif", ".avif"])
def test_formats_with_complex_decoders_are_decoded_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    gradient().save(path)
    assert was_decoded_elsewhere(path, monkeypatch)


def test_a_very_large_file_is_opened_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    gradient().save(path)
    assert not was_decoded_elsewhere(path, monkeypatch)
    for module in (images, header_cache):
        monkeypatch.setattr(module, "MAX_BYTES_HERE", path.stat().st_size - 1)
    assert was_decoded_elsewhere(path, monkeypatch)
    assert header_cache.upright_size(path) is None
    assert header_cache.readable_size(path) == (640, 400)
    assert not header_cache.is_transparent(path)


def test_a_jpeg_with_very_many_scans_is_decoded_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    gradient().save(path, progressive=True)
    assert not was_decoded_elsewhere(path, monkeypatch)
    data = path.read_bytes()
    last = data[data.rindex(JPEG_SCAN) : -2]
    path.write_bytes(data[:-2] + last * MAX_SCANS + data[-2:])
    assert was_decoded_elsewhere(path, monkeypatch)


def was_decoded_elsewhere(path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    asked: list[Path] = []
    with monkeypatch.context() as patch:
        original = POOL.decode
        patch.setattr(POOL, "decode", lambda path, options: asked.append(path) or original(path, options))
        assert decode(path).size == (640, 400)
    return asked == [path]
