"""A shared studio has an account, and guessing its password takes long."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from urllib.parse import urlencode, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from lora_studio.errors import InputError
from lora_studio.ui import launch
from lora_studio.ui.accounts import AUTH_VARIABLE, FREE_FAILURES, MAX_WAIT, LoginLimit, account_for
from lora_studio.ui.launch import Served
from lora_studio.ui.server import Mode
from lora_studio.workspace.project import Home


def test_a_shared_studio_has_a_new_password_at_every_start() -> None:
    first, second = account_for(Mode.SHARED, None, {}), account_for(Mode.SHARED, None, {})
    assert first is not None
    assert second is not None
    assert first.is_generated
    assert first.password != second.password
    assert len(first.password) >= 16
    assert account_for(Mode.LOCAL, None, {}) is None


def test_the_users_own_account_replaces_it() -> None:
    account = account_for(Mode.SHARED, None, {AUTH_VARIABLE: "ann:s:e"})
    assert account is not None
    assert (account.user, account.password, account.is_generated) == ("ann", "s:e", False)
    given = account_for(Mode.LOCAL, "bob:pw", {AUTH_VARIABLE: "ann:s"})
    assert given is not None
    assert given.user == "bob"


@pytest.mark.parametrize("text", ["", "ann", "ann:", ":pw"])
def test_half_an_account_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        account_for(Mode.SHARED, None, {AUTH_VARIABLE: text})
    assert caught.value.code == "auth"


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def limited(clock: Clock) -> TestClient:
    async def login(request: object) -> PlainTextResponse:
        form = await request.form()  # type: ignore[attr-defined]
        return PlainTextResponse("", status_code=200 if form.get("password") == "right" else 400)

    inner = Starlette(routes=[Route("/login", login, methods=["POST"])])
    return TestClient(LoginLimit(inner, clock=clock))


def test_after_wrong_passwords_even_the_right_one_waits() -> None:
    clock = Clock()
    client = limited(clock)
    for _ in range(FREE_FAILURES):
        assert client.post("/login", data={"password": "wrong"}).status_code == 400
    refused = client.post("/login", data={"password": "right"})
    assert refused.status_code == 429
    clock.now += float(refused.headers["Retry-After"])
    assert client.post("/login", data={"password": "right"}).status_code == 200
    assert client.post("/login", data={"password": "wrong"}).status_code == 400, "a success resets the count"


@given(st.integers(FREE_FAILURES, 60))
def test_a_thousand_guesses_take_hours(attempts: int) -> None:
    clock = Clock()
    limit = LoginLimit(PlainTextResponse(""), clock=clock)
    for _ in range(attempts):
        limit.count("1.2.3.4", wrong=True)
        clock.now = max(clock.now, limit.failures["1.2.3.4"].until)
    waited = clock.now - 100
    assert waited >= MAX_WAIT * max(0, attempts - FREE_FAILURES - 6)
    assert limit.failures["1.2.3.4"].until - clock.now <= MAX_WAIT


@pytest.fixture
def shared(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(Home, "check_private", lambda home: None)
    monkeypatch.delenv(AUTH_VARIABLE, raising=False)
    served = launch.serve(home, allowed_hosts=["box.example"])
    yield served
    served.close()


@pytest.mark.slow
def test_nothing_of_a_shared_studio_is_seen_without_the_password(shared: Served) -> None:
    address = urlsplit(shared.url)

    def ask(method: str, path: str, body: str = "", **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        connection.request(method, path, body, {"Host": "box.example", **headers})
        return connection.getresponse()

    for path in ("/config", "/gradio_api/info", "/gradio_api/file=x"):
        assert ask("GET", path).status == 401, path
    assert shared.account is not None
    form = urlencode({"username": shared.account.user, "password": shared.account.password})
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    logged_in = ask("POST", "/login", form, **kind)
    assert logged_in.status == 200
    cookies = "; ".join(value.split(";")[0] for name, value in logged_in.getheaders() if name.lower() == "set-cookie")
    assert ask("GET", "/config", Cookie=cookies).status == 200
    wrong = urlencode({"username": shared.account.user, "password": "guess"})
    statuses = [ask("POST", "/login", wrong, **kind).status for _ in range(FREE_FAILURES + 1)]
    assert statuses == [400] * FREE_FAILURES + [429]
