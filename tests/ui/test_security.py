"""A browser can neither read other files, nor write outside the home, nor send requests from other sites."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, urlsplit

import pytest

from lora_studio.ui.app import AppFrame
from lora_studio.ui.plan.tab import PlanTab
from lora_studio.ui.widgets.thumbnails import thumbnail_url
from lora_studio.workspace.project import Home, Project
from tests.support.application import ROOT, Running
from tests.support.interface import Interface, error_code
from tests.support.jobs import make_project, make_run

SECRET = b"not for the browser"


def ask(
    running: Running, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Send one request with the path exactly as given; return status, headers and body."""
    address = urlsplit(running.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Host": address.netloc} | named).items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def project(running: Running) -> Project:
    """Create a project with a run, and a secret in every kind of file."""
    made = make_project(running.home)
    run = make_run(made)
    for path in (run.path / "notes.txt", made.images_dir / "picture 0.txt", running.home.path / "secret.txt"):
        path.write_bytes(SECRET)
    return made


def test_no_other_site_can_frame_the_page(running: Running) -> None:
    for path in ("/", "/config", "/gradio_api/file=/etc/passwd"):
        assert ask(running, path)[1]["content-security-policy"] == "frame-ancestors 'none'", path


def spellings(path: Path) -> Iterator[str]:
    """Yield spellings of a path that a careless server resolves to another path."""
    text = str(path)
    yield from (text, quote(text), quote(text, safe=""), "/" + text, text.replace("/", "//"), f"file://{text}")
    yield from (text.replace("/", "/./"), f"{ROOT}/../../{text}", "../" * 12 + text.lstrip("/"), text + "%00.webp")
    yield from (quote("../" * 12, safe="") + text.lstrip("/"), text.upper(), text.replace("/", "\\"))


def test_no_file_of_the_home_is_served(running: Running, project: Project) -> None:
    run = project.runs()[0].path
    inside = [
        run / "notes.txt",
        run / "job.toml",
        run / "ink.safetensors",
        project.images_dir / "picture 0.png",
        project.images_dir / "picture 0.txt",
        project.path / "project.json",
        running.home.path / "secret.txt",
    ]
    for path in inside:
        content = path.read_bytes()
        for spelled in spellings(path):
            for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/"):
                status, _, body = ask(running, route + spelled.replace(" ", "%20"))
                assert status >= 400, (route, spelled)
                assert content not in body, (route, spelled)


def test_paths_out_of_the_thumbnails_are_refused(running: Running, project: Project) -> None:
    link = running.home.thumbnails / "link.webp"
    link.symlink_to(running.home.path / "secret.txt")
    paths = [
        f"{running.home.thumbnails}/../../secret.txt",
        f"{running.home.thumbnails}/%2e%2e/%2e%2e/secret.txt",
        str(link),
    ]
    for path in paths:
        status, _, body = ask(running, f"/gradio_api/file={path}")
        assert status >= 400, path
        assert SECRET not in body


def test_neither_the_program_nor_the_system_is_served(running: Running) -> None:
    for path in (ROOT / "app.py", ROOT / "pyproject.toml", Path("/etc/passwd"), Path("/proc/self/environ")):
        for spelled in spellings(path):
            status, _, body = ask(running, f"/gradio_api/file={spelled}")
            assert b"root:" not in body, spelled
            assert b"import typer" not in body, spelled
            assert b"LORA_STUDIO_HOME" not in body, spelled
            if path.parts[1] != ROOT.parts[1]:
                assert status >= 400, spelled


def test_thumbnails_are_served_as_images(running: Running, project: Project) -> None:
    url = thumbnail_url(running.home, project.images_dir / "picture 0.png", 64)
    status, headers, body = ask(running, f"/{url}")
    assert status == 200
    assert headers["content-type"] == "image/webp"
    assert headers["x-content-type-options"] == "nosniff"
    assert body[8:12] == b"WEBP"


def test_requests_of_other_sites_are_refused(running: Running) -> None:
    own = urlsplit(running.url).netloc
    port = own.rpartition(":")[2]
    refused: list[dict[str, str]] = [
        {"Host": "evil.example"},
        {"Host": f"evil.example:{port}"},
        {"Host": ""},
        {"Host": "192.168.0.7"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://localhost:{port}"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
    ]
    for headers in refused:
        assert ask(running, "/", **headers)[0] == 403, headers
        assert ask(running, "/gradio_api/upload", "POST", b"x", **headers)[0] == 403, headers
    assert ask(running, "/", Host=f"localhost:{port}")[0] == 200
    assert ask(running, "/", Origin=f"http://{own}")[0] == 200
    assert ask(running, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200


FILES = {"file", "gallery", "image", "imageeditor", "imageslider", "uploadbutton"}


class Canary(BaseHTTPRequestHandler):
    """A web server of the computer's own network; it records what it was asked for."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(SECRET)

    do_HEAD = do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def canary() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Canary)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Canary.asked.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_the_server_requests_no_url_that_a_browser_gives(running: Running, canary: str) -> None:
    """Neither one of its own network in place of a file, nor one in a route of gradio's."""
    config = json.loads(ask(running, "/config")[2])
    components = {item["id"]: item for item in config["components"]}
    called = 0
    for item in config["dependencies"]:
        inputs = [components[number] for number in item["inputs"]]
        if not item["queue"] or not FILES & {component["type"] for component in inputs}:
            continue
        called += 1
        url = f"{canary}/{item['id']}.png"
        file = {"path": url, "url": url, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
        data = [[file] if part["type"] in FILES else part["props"].get("value") for part in inputs]
        body = json.dumps({"data": data, "fn_index": item["id"], "session_hash": f"canary{called}"}).encode()
        assert ask(running, "/gradio_api/queue/join", "POST", body, Content_Type="application/json")[0] == 200
        answer = ask(running, f"/gradio_api/queue/data?session_hash=canary{called}")[2]
        assert b"process_completed" in answer
        assert SECRET not in answer
    assert called > 3
    for route in ("file=", "proxy=", "stream/"):
        for url in (f"{canary}/route", "http://169.254.169.254/latest/meta-data"):
            status, _, answer = ask(running, f"/gradio_api/{route}{quote(url, safe='')}")
            assert status >= 400, route
            assert SECRET not in answer
    assert Canary.asked == []


def test_handlers_cannot_bypass_the_queue(running: Running) -> None:
    config = json.loads(ask(running, "/config")[2])
    unqueued = {item["api_name"] for item in config["dependencies"] if not item["queue"]}
    assert all("tick" in name for name in unqueued), "what changes anything goes through the queue"
    names = {item["api_name"] for item in config["dependencies"] if item["api_name"]} - unqueued
    assert {"start_training", "stop_training", "delete_project"} <= names
    body = json.dumps({"data": []}).encode()
    for name in names:
        status = ask(running, f"/gradio_api/run/{name}", "POST", body, Content_Type="application/json")[0]
        assert status == 404, name
    for route in ("/docs", "/redoc", "/gradio_api/mcp/", "/monitoring"):
        assert ask(running, route)[0] >= 400, route


def test_no_handler_is_listed_for_clients(running: Running) -> None:
    assert json.loads(ask(running, "/gradio_api/info")[2])["named_endpoints"] == {}
    assert b'"/start_training"' not in ask(running, "/")[2]


def test_the_page_contains_no_path_of_this_computer(running: Running) -> None:
    page = ask(running, "/")[2] + ask(running, "/config")[2]
    assert str(running.home.path / "projects").encode() not in page


def test_projects_are_found_by_name_only(home: Home, interface: Interface, tmp_path: Path) -> None:
    make_project(home)
    outside = make_project(Home(tmp_path / "elsewhere"), "other")
    interface.open_project("ink")
    before = sorted(tmp_path.rglob("*"))
    for name in ("../../elsewhere/projects/other", str(outside.path), ".", "..", "ink/../ink", "x" * 5000, "a\0b"):
        for handler, box in [
            (AppFrame.select_project, "project_list"),
            (AppFrame.delete_project, "project"),
            (PlanTab.update_plan, "project"),
        ]:
            shown = interface.call(handler, **{box: name})
            notice = shown.get("frame_notice") or shown.get("plan_notice")
            assert error_code(notice) == "no_project", (handler, name[:60])
    assert sorted(tmp_path.rglob("*")) == before


def test_new_names_stay_inside_the_home(home: Home, interface: Interface) -> None:
    make_project(home)
    interface.open_project("ink")
    handlers = AppFrame.create_project, AppFrame.rename_project, AppFrame.duplicate_project
    for name in (
        "../up",
        "/etc/x",
        "..",
        "a/b",
        "a\\b",
        "$(touch P)",
        "<img src=x onerror=alert(1)>",
        "a\nb",
        "-" * 80,
    ):
        for handler in handlers:
            shown = interface.call(handler, project_name=name)
            assert error_code(shown["frame_notice"]) == "project_name", (handler, name)
            assert "<img" not in shown["frame_notice"]
    assert [path.name for path in (home.path / "projects").iterdir()] == ["ink"]


def test_restore_accepts_only_projects_in_the_trash(home: Home, interface: Interface) -> None:
    project = make_project(home)
    for given in ("../projects/ink", str(project.path), None, "x/y"):
        shown = interface.call(AppFrame.restore_project, project_trash=given)
        assert error_code(shown["frame_notice"]) == "trash"
    assert project.path.is_dir()
