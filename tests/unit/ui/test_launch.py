"""Launching the interface: nothing is left to environment variables, and uploads are limited."""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
import pytest
from gradio.routes import App

from lora_studio.errors import InputError
from lora_studio.ui import launch
from lora_studio.ui.accounts import LoginLimit
from lora_studio.ui.server import Guard
from lora_studio.ui.uploads import UploadLimit
from lora_studio.workspace.project import Home


def test_environment_variables_cannot_change_the_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(Home, "check_private", lambda home: None)

    def launch_without_server(blocks: gr.Blocks, **options: Any) -> tuple[App, str, None]:
        given.update(options)
        return App.create_app(blocks), "http://x/", None

    monkeypatch.setattr(gr.Blocks, "launch", launch_without_server)
    home = Home(tmp_path / "home")
    launch.serve(home).close()
    assert given["allowed_paths"] == [str(home.thumbnails)]
    assert str(home.path / "projects") in given["blocked_paths"]
    assert given["server_name"] == "127.0.0.1"
    assert given["root_path"] == ""
    assert given["auth"] is None
    for name in ("share", "run_history", "enable_monitoring", "mcp_server", "ssr_mode", "pwa", "inbrowser"):
        assert given[name] is False, name
    assert given["strict_cors"] is True
    assert given["max_file_size"] == launch.MAX_UPLOAD
    assert given["footer_links"] == ["gradio", "settings"]
    assert [entry.cls for entry in given["app_kwargs"]["middleware"]] == [
        Guard,
        LoginLimit,
        UploadLimit,
    ]


@pytest.mark.slow
def test_large_uploads_are_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Home, "check_private", lambda home: None)
    monkeypatch.setattr(launch, "MAX_UPLOAD", "1kb")
    served = launch.serve(home)
    try:
        body = (
            b"--b\r\nContent-Disposition: form-data; name=files; filename=a.png\r\n\r\n"
            + b"x" * 5000
            + b"\r\n--b--\r\n"
        )
        address = urlsplit(served.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        connection.request("POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=b"})
        assert connection.getresponse().status == 413
        connection.close()
    finally:
        served.close()


@pytest.mark.parametrize("place", ["working", "temporary"])
def test_a_home_in_a_served_folder_is_refused(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path if place == "working" else elsewhere)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path if place == "temporary" else elsewhere))
    with pytest.raises(InputError, match=place):
        launch.serve(Home(tmp_path / "home"))
    assert not (tmp_path / "home").exists()
