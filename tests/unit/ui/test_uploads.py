"""Uploads are limited by the size of a request, by what is kept, and by free disk space."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from lora_studio.ui import uploads
from lora_studio.ui.uploads import UPLOAD_PATH, UploadLimit, UploadLimits
from lora_studio.workspace.disk_usage import folder_size

GIB = 2**30


async def store(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The disk usage of every folder; tests set its `free` bytes."""
    usage = SimpleNamespace(free=100 * GIB)
    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda folder: usage)
    return usage


def limited(folder: Path, **limits: int) -> UploadLimit:
    app = Starlette(routes=[Route(UPLOAD_PATH, store, methods=["POST"]), Route("/else", store, methods=["POST"])])
    return UploadLimit(app, lambda: folder, UploadLimits(**limits))


def test_an_upload_below_the_limits_is_received(tmp_path: Path, free: SimpleNamespace) -> None:
    client = TestClient(limited(tmp_path))
    assert client.post(UPLOAD_PATH, content=b"x" * 5000).text == "5000"


def test_a_request_above_its_limit_is_refused_before_it_is_read(tmp_path: Path, free: SimpleNamespace) -> None:
    client = TestClient(limited(tmp_path))
    response = client.post(UPLOAD_PATH, content=b"", headers={"Content-Length": str(20 * GIB)})
    assert response.status_code == 413
    assert "20.0 GiB" in response.text
    assert "16.0 GiB" in response.text
    assert client.post("/else", content=b"", headers={"Content-Length": str(20 * GIB)}).status_code == 200


def test_a_request_without_a_size_is_refused(tmp_path: Path, free: SimpleNamespace) -> None:
    def parts() -> Iterator[bytes]:
        yield b"x"

    client = TestClient(limited(tmp_path))
    assert client.post(UPLOAD_PATH, content=parts()).status_code == 411
    both = {"Content-Length": "1", "Transfer-Encoding": "chunked"}
    assert client.post(UPLOAD_PATH, content=parts(), headers=both).status_code == 411


def test_uploads_that_are_kept_count(tmp_path: Path, free: SimpleNamespace) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "kept.png").write_bytes(b"x" * 600)
    assert folder_size(tmp_path) == 600
    limit = limited(tmp_path, kept=1000)
    assert limit.refusal(400) == ""
    assert str(tmp_path) in limit.refusal(401)
    limit.pending = 100  # of an upload that is being received
    assert limit.refusal(301)


def test_disk_space_is_left_free(tmp_path: Path, free: SimpleNamespace) -> None:
    free.free = 3 * GIB
    limit = limited(tmp_path / "not yet made")
    assert limit.refusal(GIB) == ""
    assert "3.0 GiB free" in limit.refusal(GIB + 1)
