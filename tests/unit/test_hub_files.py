"""Large files of the Hub are resumed, compared with their checksum, and found by huggingface_hub afterwards."""

from __future__ import annotations

import random
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import scan_cache_dir

from lora_studio import hub_files
from lora_studio.errors import StopRequested, StudioError
from lora_studio.hub import download
from lora_studio.hub_files import Transfer
from tests.support.hub_server import HubServer

WEIGHTS = "unet/model.safetensors"
CONTENT = random.Random(1).randbytes(300_000)
ALL = ["*.json", "*/*.safetensors"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    monkeypatch.setattr(hub_files, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(hub_files, "BLOCK", 1 << 13)
    with HubServer({"a/b": {"model_index.json": b"{}", WEIGHTS: CONTENT}}).running() as server:
        server.use_here(monkeypatch, tmp_path / "cache")
        yield server


def fetch(report: Any = lambda transfer: None, **options: Any) -> Path:
    return download("a/b", ALL, report=report, **options)


def test_a_download_reports_bytes_and_is_found_by_huggingface_hub(hub: HubServer, tmp_path: Path) -> None:
    seen: list[tuple[int, int, bool]] = []
    folder = fetch(lambda transfer: seen.append((transfer.done, transfer.total, transfer.is_checking)))
    assert (folder / WEIGHTS).read_bytes() == CONTENT
    assert (folder / "model_index.json").is_file()
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1] == (len(CONTENT), len(CONTENT), False)
    assert any(checking for _, _, checking in seen)
    assert [repo.repo_id for repo in scan_cache_dir(tmp_path / "cache").repos] == ["a/b"]
    assert fetch() == folder
    assert hub.ranges == [0]


def test_a_broken_download_is_continued(hub: HubServer, tmp_path: Path) -> None:
    hub.cut_after = 100_000
    with pytest.raises(StudioError) as caught:
        fetch()
    assert caught.value.code == "hub_download"
    [partial] = (tmp_path / "cache").rglob("*.incomplete")
    kept = partial.stat().st_size
    assert 0 < kept <= 120_000
    hub.cut_after = None
    hub.ranges.clear()
    first: list[int] = []
    folder = fetch(lambda transfer: first.append(transfer.done))
    assert (folder / WEIGHTS).read_bytes() == CONTENT
    assert hub.ranges == [kept]
    assert first[0] > kept
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_a_stopped_download_keeps_what_it_has(hub: HubServer, tmp_path: Path) -> None:
    done: list[int] = []
    with pytest.raises(StopRequested):
        fetch(lambda transfer: done.append(transfer.done), should_stop=lambda: bool(done))
    [partial] = (tmp_path / "cache").rglob("*.incomplete")
    assert 0 < partial.stat().st_size < len(CONTENT)
    assert (fetch() / WEIGHTS).read_bytes() == CONTENT


def test_a_damaged_file_is_refused_and_removed(hub: HubServer, tmp_path: Path) -> None:
    blobs = tmp_path / "cache" / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    sha256 = hub.listing("a/b")[1]["lfs"]["oid"]  # type: ignore[index]
    (blobs / f"{sha256}.incomplete").write_bytes(bytes(1000))
    with pytest.raises(StudioError) as caught:
        fetch()
    assert caught.value.code == "hub_checksum"
    assert list(blobs.iterdir()) == []
    assert (fetch() / WEIGHTS).read_bytes() == CONTENT


def test_a_full_disk_is_found_before_the_download(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(hub_files.shutil, "disk_usage", lambda path: usage(10**6, 0, 10**5))
    with pytest.raises(StudioError) as caught:
        fetch()
    assert caught.value.code == "disk_full"
    assert hub.ranges == []


@pytest.mark.parametrize(("repo", "code"), [("a/b", "hub_gated"), ("a/c", "hub_missing")])
def test_a_repository_that_cannot_be_read_is_named(hub: HubServer, repo: str, code: str) -> None:
    hub.gated.add("a/b")
    with pytest.raises(StudioError) as caught:
        download(repo, ALL, report=lambda transfer: None)
    assert caught.value.code == code
    assert repo in caught.value.message


def test_without_a_network_cached_files_are_used(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = fetch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch() == folder


def test_the_time_left_follows_the_speed() -> None:
    transfer = Transfer(1000, lambda transfer: None, lambda: False)
    assert transfer.seconds_left is None
    transfer._times = [(0.0, 100), (2.0, 300)]
    transfer.done = 300
    assert transfer.seconds_left == pytest.approx(7)
