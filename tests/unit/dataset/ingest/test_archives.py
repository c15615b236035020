"""Zip archives: names, damaged entries, and archives that are refused as a whole."""

from __future__ import annotations

import re
import stat
import struct
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_studio.dataset.ingest.archives import Limits
from lora_studio.dataset.ingest.importers import import_paths
from lora_studio.errors import DiskFullError, InputError
from tests.support.import_sources import pack, png, tree


def test_reads_utf8_names_of_a_zip_without_the_flag(tmp_path: Path, images_dir: Path) -> None:
    archive = pack(tmp_path / "x.zip", {"cafe.png": png(tmp_path)})
    archive.write_bytes(archive.read_bytes().replace(b"cafe.png", "féa.png".encode()))
    assert import_paths([archive], images_dir).added == [images_dir / "féa.png"]


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:\\evil.png", "..\\evil.png", "a/.."]
)
def test_refuses_a_zip_with_a_path_outside(tmp_path: Path, images_dir: Path, name: str) -> None:
    archive = pack(tmp_path / "x.zip", {"good.png": png(tmp_path), name: png(tmp_path, 1)})
    with pytest.raises(InputError, match=r"x\.zip.*(evil\.png|a/\.\.)") as caught:
        import_paths([archive], images_dir)
    assert (caught.value.code, bool(caught.value.remedy)) == ("zip", True)
    assert not images_dir.exists()
    assert not list(tmp_path.rglob("evil*"))


def test_refuses_a_zip_with_a_link(tmp_path: Path, images_dir: Path) -> None:
    link = zipfile.ZipInfo("a.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match=r"a\.png") as caught:
        import_paths([tmp_path / "x.zip"], images_dir)
    assert caught.value.code == "zip"


@pytest.mark.parametrize(
    ("limits", "figure"),
    [
        (Limits(entries=1), "2 files"),
        (Limits(total=1 << 20), r"0\.0 GiB"),
        (Limits(ratio_exempt=1 << 20), r"\d+ times"),
    ],
)
def test_refuses_a_zip_bomb_before_writing(tmp_path: Path, images_dir: Path, limits: Limits, figure: str) -> None:
    entries = {"a.png": png(tmp_path), "b.bmp": bytes(5 << 20)}
    archive = pack(tmp_path / "x.zip", entries, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=figure) as caught:
        import_paths([archive], images_dir, limits=limits)
    assert caught.value.code == "zip"
    assert not images_dir.exists()
    assert len(import_paths([archive], images_dir).added) == 1


def test_refuses_a_zip_whose_entries_overlap(tmp_path: Path, images_dir: Path) -> None:
    data = png(tmp_path)
    archive = pack(tmp_path / "x.zip", {"a.png": data, "b.png": data})
    with zipfile.ZipFile(archive) as opened:
        first, second = (struct.pack("<I", info.header_offset) for info in opened.infolist())
    content = archive.read_bytes()
    position = content.rindex(second, 0, content.rindex(b"PK\5\6"))
    archive.write_bytes(content[:position] + first + content[position + 4 :])
    with pytest.raises(InputError, match=r"b\.png.*overlaps") as caught:
        import_paths([archive], images_dir)
    assert caught.value.code == "zip"
    assert not images_dir.exists()


def test_refuses_a_zip_that_does_not_fit_on_the_disk(
    tmp_path: Path, images_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(tmp_path / "x.zip", {"a.png": png(tmp_path), "b.bmp": bytes(5 << 20)}, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=4 << 20))
    with pytest.raises(DiskFullError, match=r"0\.0 GiB free"):
        import_paths([archive], images_dir)
    assert not images_dir.exists()


def test_reports_a_damaged_zip_entry_and_imports_the_others(tmp_path: Path, images_dir: Path) -> None:
    good, bad = png(tmp_path, 1), png(tmp_path, 2)
    archive = pack(tmp_path / "x.zip", {"good.png": good, "bad.png": bad})
    archive.write_bytes(archive.read_bytes().replace(bad, bad[:-20] + bytes(20)))
    report = import_paths([archive], images_dir)
    assert list(tree(images_dir)) == ["good.png"]
    assert [(item.name, item.code) for item in report.refused] == [("bad.png", "zip_entry")]


def test_refuses_a_zip_with_a_password(tmp_path: Path, images_dir: Path) -> None:
    archive = pack(tmp_path / "x.zip", {"a.png": png(tmp_path)})
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(InputError, match="password") as caught:
        import_paths([archive], images_dir)
    assert caught.value.code == "zip"


names = st.lists(
    st.sampled_from(["..", ".", "", "/", "a", "10_b", "con", "C:", "x" * 260, "é", "\x00", "*?", "a.b"])
    | st.text(max_size=6),
    min_size=1,
    max_size=4,
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(names, min_size=1, max_size=4), separator=st.sampled_from(["/", "\\"]))
def test_no_name_in_a_zip_leads_outside_the_dataset(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[str]], separator: str
) -> None:
    root = tmp_path_factory.mktemp("zip")
    images_dir = root / "in" / "dataset" / "10_hero"
    data = png(root)
    archive = root / "x.zip"
    with zipfile.ZipFile(archive, "w") as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # duplicate names
        for index, path in enumerate(parts):
            name = separator.join(path).encode("utf-8", "replace").decode() + ".png"
            opened.writestr(zipfile.ZipInfo(name), data + bytes([index]))
    before = {path: data for path, data in tree(root).items() if not path.startswith("in/")}
    try:
        report = import_paths([archive], images_dir)
    except InputError:
        assert not images_dir.exists()
        return
    after = tree(root)
    assert {path: data for path, data in after.items() if not path.startswith("in/")} == before
    written = [path for path in after if path.startswith("in/")]
    assert len(written) == len(report.added)
    for path in written:
        assert re.fullmatch(r"in/dataset/\d+_[^/]+/[^/]+\.png", path)
        assert len(Path(path).name.encode()) < 255
    assert len(report.added) + len(report.skipped) + len(report.refused) <= len(parts)
    again = import_paths([archive], images_dir)
    assert (again.added, len(again.skipped)) == ([], len(report.added) + len(report.skipped))
