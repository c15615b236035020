"""Access to the studio: the mode that it runs in, and a guard against requests of other web sites.

A page of another web site can make a visitor's browser send requests to a server on the visitor's own machine, and an
attacker can point a host name at that machine (DNS rebinding). The guard responds with 403 to a Host that the studio
was not started for, and to an Origin that is not the studio's own.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_studio.errors import InputError

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
SPACE_FRAMES = "'self' https://huggingface.co https://*.hf.space"  # a Space's page shows the studio in a frame
ALL_INTERFACES = frozenset({"0.0.0.0", "::", ""})


class Mode(StrEnum):
    """How the studio can be reached, as shown in the header."""

    LOCAL = "Local"
    SHARED = "Shared"
    SPACE = "Space"

    @property
    def reason(self) -> str:
        """An explanation of the mode."""
        return {
            Mode.LOCAL: "Only this computer can reach the studio.",
            Mode.SHARED: "Others can reach the studio, who need its password.",
            Mode.SPACE: "The studio runs in a Hugging Face Space: its owner signs in, others look.",
        }[self]


@dataclass
class Hosts:
    """Host names that the studio accepts. `addresses`: accept any IP address too, which DNS rebinding cannot use."""

    names: set[str] = field(default_factory=lambda: set(LOCAL_NAMES))
    addresses: bool = False

    def allows(self, host: str) -> bool:
        """Return whether a Host header (with or without port) is accepted."""
        name = host_name(host)
        return name in self.names or (self.addresses and is_address(name))


def hosts_for(host: str | None, environment: Mapping[str, str] = os.environ, *, allowed: Iterable[str] = ()) -> Hosts:
    """Return the hosts to accept: this machine, those of `--host` and `--allow-host`, the public names of a Space.

    `allowed` are names or addresses of URLs; ports are ignored. Raises InputError for one without a name.
    """
    hosts = Hosts()
    for given in allowed:
        name = host_name(given.rpartition("://")[2])
        if not name:
            raise InputError(
                f"--allow-host {given!r} is not a host name.", "Give one like box.tail1234.ts.net.", code="host"
            )
        hosts.names.add(name)
    space = [name.strip().lower() for name in environment.get("SPACE_HOST", "").split(",") if name.strip()]
    if space:
        hosts.names.update(space)
        hosts.addresses = True
    if host is not None and host in ALL_INTERFACES:
        own = socket.gethostname().lower()
        hosts.names.update({own, f"{own}.local", socket.getfqdn().lower()})
        hosts.addresses = True
    elif host:
        hosts.names.add(host.lower())
    return hosts


def mode_for(
    *, share: bool, host: str | None, allowed: Sequence[str] = (), environment: Mapping[str, str] = os.environ
) -> Mode:
    """Return the mode that follows from the flags and the environment: with `allowed` hosts others can reach it."""
    if environment.get("SYSTEM") == "spaces" or environment.get("SPACE_ID"):
        return Mode.SPACE
    if share or allowed or (host is not None and host not in LOCAL_NAMES):
        return Mode.SHARED
    return Mode.LOCAL


class Guard:
    """ASGI middleware: 403 for another Host or Origin; no page of another site may frame the studio, but a Space's."""

    def __init__(self, app: ASGIApp, hosts: Hosts, mode: Mode = Mode.LOCAL) -> None:
        self.app = app
        self.hosts = hosts
        self.frames = SPACE_FRAMES if mode is Mode.SPACE else "'none'"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass accepted requests on and refuse the others."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = self.refusal(Headers(scope=scope))
        if refusal:
            await PlainTextResponse(refusal, status_code=403)(scope, receive, send)
            return

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Content-Security-Policy"] = f"frame-ancestors {self.frames}"
                headers["Referrer-Policy"] = "same-origin"
            await send(message)

        await self.app(scope, receive, send_marked)

    def refusal(self, headers: Headers) -> str:
        """Return the reason to refuse a request; empty if it is accepted."""
        given = headers.getlist("host")
        if len(given) != 1 or not self.hosts.allows(given[0]):
            return (
                "The studio does not accept this host name. Open the address that it printed when it was started, or "
                "start it with --allow-host and this name."
            )
        for origin in headers.getlist("origin"):
            if not _same_site(origin, given[0]):
                return "Requests from other web sites are refused."
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return "Requests from other web sites are refused."
        return ""


def host_name(host: str) -> str:
    """Return the name of a Host header without its port, in lower case; empty if it cannot be parsed."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def is_address(name: str) -> bool:
    """Return whether a name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def share_names(urls: Iterable[str | None]) -> set[str]:
    """Return the host names of share links."""
    return {name for url in urls if url and (name := (urlsplit(url).hostname or "").lower())}


def _same_site(origin: str, host: str) -> bool:
    parts = urlsplit(origin)
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
