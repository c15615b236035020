"""Over HTTP, a visitor reaches the page and its events, uploads nothing, and starts nothing of the owner's."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from fastapi.routing import APIRoute

from lora_studio.ui import launch
from lora_studio.ui.accounts import AUTH_VARIABLE, VISITOR_VARIABLE
from lora_studio.ui.gate import is_open
from lora_studio.ui.launch import Served
from lora_studio.ui.server import Mode
from lora_studio.workspace.project import Home
from tests.support.jobs import make_project

PAGE_ROUTES = {
    "/", "/config", "/theme.css", "/robots.txt", "/manifest.json", "/favicon.ico", "/pwa_icon", "/pwa_icon/{size}",
    "/login", "/logout", "/svelte/{path:path}", "/static/{path:path}", "/assets/{path:path}",
    "/gradio_api/user", "/gradio_api/login_check", "/gradio_api/token", "/gradio_api/app_id",
    "/gradio_api/startup-events", "/gradio_api/info", "/gradio_api/theme.css", "/gradio_api/cancel",
    "/gradio_api/reset", "/gradio_api/queue/join", "/gradio_api/queue/data",
    "/gradio_api/heartbeat/{session_hash}", "/gradio_api/file={path_or_url:path}",
    "/gradio_api/custom_component/{id}/{environment}/{type}/{file_name}",
}  # fmt: skip
"""What the page needs; a route that a new version of gradio adds is closed."""


def login(served: Served, user: str, password: str) -> str:
    """Return the cookies of a user who has logged in."""
    answer = ask(served, "POST", "/login", urlencode({"username": user, "password": password}).encode(), form=True)
    assert answer.status == 200
    return "; ".join(value.split(";")[0] for name, value in answer.getheaders() if name.lower() == "set-cookie")


def ask(
    served: Served, method: str, path: str, body: bytes = b"", cookies: str = "", *, form: bool = False
) -> http.client.HTTPResponse:
    address = urlsplit(served.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
    kind = "application/x-www-form-urlencoded" if form else "application/json"
    connection.request(method, path, body, {"Host": "box.example", "Cookie": cookies, "Content-Type": kind})
    return connection.getresponse()


def call(served: Served, handler: str, values: list[Any], cookies: str) -> dict[str, Any]:
    """Call a handler through the queue, as the page does; return the message that ends it."""
    number = next(key for key, event in served.blocks.fns.items() if event.api_name == handler)
    request = {"data": values, "fn_index": number, "session_hash": f"s{number}", "trigger_id": None}
    joined = ask(served, "POST", "/gradio_api/queue/join", json.dumps(request).encode(), cookies)
    assert joined.status == 200, joined.read()
    stream = ask(served, "GET", f"/gradio_api/queue/data?session_hash=s{number}", cookies=cookies)
    for line in stream:
        message = json.loads(line[5:]) if line.startswith(b"data:") else {}
        if message.get("msg") == "process_completed":
            return dict(message)
    raise AssertionError("the stream ended")


@pytest.fixture
def served(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(Home, "check_private", lambda home: None)
    monkeypatch.setenv(AUTH_VARIABLE, "ann:owns")
    monkeypatch.setenv(VISITOR_VARIABLE, "bob:looks")
    make_project(home, "ink")
    running = launch.serve(home, allowed_hosts=["box.example"])
    assert running.mode is Mode.SHARED
    yield running
    running.close()


@pytest.mark.slow
def test_a_visitor_changes_nothing_over_http(served: Served, home: Home) -> None:
    owner, visitor = login(served, "ann", "owns"), login(served, "bob", "looks")
    secret = make_project(home, "hush")
    for cookies in (owner, visitor):
        config = ask(served, "GET", "/config", cookies=cookies)
        assert config.status == 200
        assert b"hush" not in config.read(), "the page is the same for all: nothing of the home is in it"
    for path in ("/gradio_api/upload", "/gradio_api/component_server", "/gradio_api/run/delete_project"):
        assert ask(served, "POST", path, b"{}", visitor).status == 403, path
        assert ask(served, "POST", path, b"{}", owner).status != 403, path
    assert "owner" in str(call(served, "delete_project", ["hush"], visitor)["output"]["error"])
    assert "owner" in str(call(served, "create_project", ["mine"], visitor)["output"]["error"])
    assert secret.path.is_dir()
    assert call(served, "load_page", ["ink"], owner)["success"]
    shown = call(served, "load_page", ["hush"], visitor)
    assert shown["success"]
    assert "hush" not in str(shown)
    assert call(served, "delete_project", ["hush"], owner)["success"]
    assert not secret.path.exists()


def paths_of(routes: Iterable[Any]) -> Iterator[str]:
    """Yield the paths of routes, and of the routers that are included."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route.path
        else:
            yield from paths_of(getattr(getattr(route, "original_router", None), "routes", ()))


@pytest.mark.slow
def test_only_the_routes_of_the_page_are_open(served: Served) -> None:
    routes = {path.rstrip("/") or "/" for path in paths_of(served.blocks.app.routes)}
    assert len(routes) > 40
    filled = {route: route.replace("{", "").replace("}", "").replace(":path", "") for route in routes}
    assert {route for route, path in filled.items() if is_open(path)} <= PAGE_ROUTES
    for path in ("/gradio_api/queue/join/", "/gradio_api/file=/tmp/x.webp", "/"):
        assert is_open(path), path
    for path in ("/gradio_api/upload/", "/gradio_api/queue/../upload", "//gradio_api/upload", "/gradio_api/uploads"):
        assert not is_open(path), path
