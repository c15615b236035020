"""The account of a studio that others can reach, and the limit on attempts to log in."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_studio.errors import InputError
from lora_studio.ui.server import Mode

VISITOR_VARIABLE = "LORA_STUDIO_VISITOR_AUTH"
AUTH_VARIABLE = "LORA_STUDIO_AUTH"  # USER:PASSWORD; the list of processes does not show it, as it does --auth
USER = "studio"
PASSWORD_BYTES = 12  # 16 characters
FREE_FAILURES = 5  # wrong passwords in a row without a wait
MAX_WAIT = 60.0  # seconds
MAX_ADDRESSES = 10_000  # whose failures are counted; beyond, all are forgotten
UNAUTHORIZED = (400, 401)  # gradio answers a wrong password with 400


@dataclass(frozen=True)
class Account:
    """A user and the password; `is_generated` if it was made for this start and must be shown."""

    user: str
    password: str
    is_generated: bool = False


def account_for(mode: Mode, auth: str | None, environment: Mapping[str, str] = os.environ) -> Account | None:
    """Return the account of `--auth` or LORA_STUDIO_AUTH; a shared studio without either gets a generated password.

    None for a local studio without one, and for a Space. Raises InputError for a text that is not USER:PASSWORD.
    """
    given = auth if auth is not None else environment.get(AUTH_VARIABLE)
    if given is not None:
        return _parsed(given, "--auth" if auth is not None else AUTH_VARIABLE)
    if mode is Mode.SHARED:
        return Account(USER, secrets.token_urlsafe(PASSWORD_BYTES), is_generated=True)
    return None


def visitor_for(owner: Account | None, environment: Mapping[str, str] = os.environ) -> Account | None:
    """Return the account of LORA_STUDIO_VISITOR_AUTH; None without it, or without accounts.

    Raises InputError for a text that is not USER:PASSWORD, and for the owner's user.
    """
    given = environment.get(VISITOR_VARIABLE)
    if given is None or owner is None:
        return None
    visitor = _parsed(given, VISITOR_VARIABLE)
    if visitor.user == owner.user:
        raise InputError(
            f"{VISITOR_VARIABLE} has the owner's user {owner.user!r}.", "Use another name for visitors.", code="auth"
        )
    return visitor


def _parsed(text: str, name: str) -> Account:
    user, separator, password = text.partition(":")
    if not (user and separator and password):
        raise InputError(f"{name} needs a user and a password.", f"Use {name} USER:PASSWORD.", code="auth")
    return Account(user, password)


@dataclass
class _Failures:
    """Wrong passwords in a row from one address, and until when no further one is looked at."""

    count: int = 0
    until: float = 0.0


@dataclass
class LoginLimit:
    """ASGI middleware: after FREE_FAILURES wrong passwords in a row, an address waits longer each time, up to MAX_WAIT.

    A request within the wait gets 429 with Retry-After. Behind a tunnel all visitors have one address, and wait
    together.
    """

    app: ASGIApp
    clock: Callable[[], float] = time.monotonic
    failures: dict[str, _Failures] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, unless it is a log-in within the wait."""
        is_login = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].rstrip("/") == "/login"
        if not is_login:
            await self.app(scope, receive, send)
            return
        address = (scope.get("client") or ("",))[0]
        known = self.failures.get(address, _Failures())
        if (left := known.until - self.clock()) > 0:
            seconds = str(int(left) + 1)
            response = PlainTextResponse(
                f"Too many wrong passwords: wait {seconds} s.", status_code=429, headers={"Retry-After": seconds}
            )
            await response(scope, receive, send)
            return

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.count(address, wrong=message["status"] in UNAUTHORIZED)
            await send(message)

        await self.app(scope, receive, send_counted)

    def count(self, address: str, *, wrong: bool) -> None:
        """Record how an attempt from an address ended."""
        if not wrong:
            self.failures.pop(address, None)
            return
        if len(self.failures) >= MAX_ADDRESSES:
            self.failures.clear()
        known = self.failures.setdefault(address, _Failures())
        known.count += 1
        if known.count >= FREE_FAILURES:
            known.until = self.clock() + min(MAX_WAIT, 2.0 ** (known.count - FREE_FAILURES))
