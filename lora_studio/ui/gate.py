"""The routes of the web server that others than the owner may use: the page, its events and the files that it shows."""

from __future__ import annotations

import re

from anyio import to_thread
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lora_studio.ui.roles import Role, Roles, session_of

OPEN_ROUTES = re.compile(
    r"/|/config|/theme\.css|/robots\.txt|/manifest\.json|/favicon\.ico|/pwa_icon(/.*)?|/login(/.*)?|/logout"
    r"|/(svelte|static|assets)/.*"
    r"|/gradio_api/(user|login_check|token|app_id|startup-events|info|theme\.css|cancel|reset|queue/join|queue/data)"
    r"|/gradio_api/(heartbeat|custom_component)/.*|/gradio_api/file=.*"
)
"""Uploads are not among them: they fill the disk. Nor is what the page does not use, like a component's own server."""


class Gate:
    """ASGI middleware: 403 for a request of another role than the owner's to a route that is not in OPEN_ROUTES."""

    def __init__(self, app: ASGIApp, roles: Roles) -> None:
        self.app = app
        self.roles = roles

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass accepted requests on and refuse the others."""
        if scope["type"] in ("http", "websocket") and not is_open(scope["path"]):
            role = await to_thread.run_sync(self._role, scope)
            if role is not Role.OWNER:
                await PlainTextResponse(role.refusal, status_code=403)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _role(self, scope: Scope) -> Role:
        request = HTTPConnection(scope)
        return self.roles.of(logged_in_user(request), session_of(request))


def is_open(path: str) -> bool:
    """Return whether everybody who may see the page may use a route."""
    return OPEN_ROUTES.fullmatch(path.rstrip("/") or "/") is not None


def logged_in_user(request: HTTPConnection) -> str | None:
    """Return the user whose cookie of gradio's a request has; None if there is none."""
    app = request.scope.get("app")
    number, tokens = getattr(app, "cookie_id", None), getattr(app, "tokens", {})
    for name in (f"access-token-{number}", f"access-token-unsecure-{number}"):
        token = request.cookies.get(name)
        if token and token in tokens:
            return str(tokens[token])
    return None
