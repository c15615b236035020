"""The app in the environment of a Space, with an OAuth provider and a Hub of our own."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest

from tests.support.application import Running, start_app, stop_app

pytestmark = pytest.mark.slow

HOST = "ann-studio.hf.space"
TOKEN = "hf_canarycanary"
USERS = {"code-ann": "ann", "code-bob": "bob"}  # by the code that the provider gave them


class Provider(BaseHTTPRequestHandler):
    """OpenID configuration, tokens (the user's name is the token) and the Hub's whoami."""

    def do_GET(self) -> None:
        if self.path.startswith("/.well-known"):
            url = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
            pages = {f"{name}_endpoint": f"{url}/{name}" for name in ("authorization", "token", "userinfo")}
            self.answer({"issuer": url, **pages})
        else:
            user = self.headers.get("Authorization", "").removeprefix("Bearer ")
            self.answer({"name": user, "type": "user", "orgs": []})

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        user = USERS[form["code"][0]]
        profile = {"sub": user, "name": user, "preferred_username": user, "profile": "", "picture": ""}
        self.answer({"access_token": user, "token_type": "bearer", "expires_in": 600, "userinfo": profile})

    def answer(self, value: object) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def space(provider: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    environment = {
        "SYSTEM": "spaces",
        "SPACE_ID": "ann/studio",
        "SPACE_AUTHOR_NAME": "ann",
        "SPACE_HOST": HOST,
        "OAUTH_CLIENT_ID": "id",
        "OAUTH_CLIENT_SECRET": "secret",
        "OAUTH_SCOPES": "openid profile",
        "OPENID_PROVIDER_URL": provider,
        "HF_ENDPOINT": provider,
        "HF_HUB_OFFLINE": "0",
        "LORA_STUDIO_TOUR": "0",
        "HF_TOKEN": TOKEN,
    }
    folder: Path = tmp_path_factory.mktemp("space")
    running = start_app(folder, environment=environment)
    yield running
    stop_app(running.process)


def ask(space: Running, method: str, path: str, cookies: str = "") -> http.client.HTTPResponse:
    """Send a request as the Space's proxy does, which ends TLS."""
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(space.url).port, timeout=120)
    headers = {"Host": HOST, "X-Forwarded-Proto": "https", "Cookie": cookies}
    connection.request(method, path, b"{}" if method == "POST" else None, headers)
    return connection.getresponse()


def session(response: http.client.HTTPResponse, cookies: str = "") -> str:
    """Return the cookies after a response."""
    given = [value.split(";")[0] for name, value in response.getheaders() if name.lower() == "set-cookie"]
    return "; ".join(given) or cookies


def sign_in(space: Running, code: str) -> str:
    """Sign in through the provider as the user of a code; return the cookies."""
    start = ask(space, "GET", "/login/huggingface")
    asked = parse_qs(urlsplit(start.headers["Location"]).query)
    assert asked["client_id"] == ["id"]
    assert urlsplit(asked["redirect_uri"][0]).hostname == HOST
    cookies = session(start)
    state = asked["state"][0]
    done = ask(space, "GET", f"/login/callback?code={code}&state={state}", cookies)
    assert done.status in (302, 303, 307)
    return session(done, cookies)


def test_everybody_sees_the_page_and_only_the_owner_uploads(space: Running) -> None:
    assert ask(space, "GET", "/").status == 200
    config = ask(space, "GET", "/config")
    assert b"Sign in as the owner" in config.read()
    upload = "/gradio_api/upload"
    assert ask(space, "POST", upload).status == 403
    assert ask(space, "POST", upload, sign_in(space, "code-bob")).status == 403
    assert ask(space, "POST", upload, sign_in(space, "code-ann")).status not in (401, 403)
    assert ask(space, "POST", upload, "session=forged").status == 403


def test_the_owners_token_is_in_no_page_and_no_file(space: Running) -> None:
    cookies = sign_in(space, "code-ann")
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/startup-events", "/openapi.json", "/theme.css"):
        for known in ("", cookies):
            assert TOKEN.encode() not in ask(space, "GET", path, known).read(), path
    files = [path for path in space.home.path.parent.rglob("*") if path.is_file()]
    assert space.log in files
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    arguments = psutil.Process(space.process.pid).cmdline()
    assert TOKEN not in " ".join(arguments)


def test_another_host_name_than_the_spaces_is_refused(space: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(space.url).port, timeout=120)
    connection.request("GET", "/", headers={"Host": "evil.example"})
    assert connection.getresponse().status == 403
