"""Who may do what in a studio that others can reach: the owner everything, others only what is declared for them.

`Roles` knows the role of a request. Handlers are declared with `allowed`; one that is not runs for the owner only (see
`authorisation.py`, which wraps them all).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeVar

from lora_studio.errors import InputError
from lora_studio.ui.accounts import Account
from lora_studio.ui.server import Mode

WHOAMI_SECONDS = 300.0  # that the Hub's answer about a token counts
MAX_TOKENS = 1000  # whose answers are cached; beyond, all are forgotten
ORGANISATION_ROLES = frozenset({"admin", "write"})  # of a member who may change the organisation's Spaces

HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])


class Role(IntEnum):
    """A role may do what the ones below it may.

    - GUEST: look at the example project. Everybody who opens a Space.
    - VISITOR: look at the project that the owner has open, and draw test grids of its LoRAs.
    - OWNER: everything.
    """

    GUEST = 0
    VISITOR = 1
    OWNER = 2

    @property
    def title(self) -> str:
        """The text of the header's pill."""
        return {Role.GUEST: "Read-only tour", Role.VISITOR: "Visitor", Role.OWNER: "Owner"}[self]

    @property
    def reason(self) -> str:
        """The reason of the pill: what the role may do."""
        return {
            Role.GUEST: "You can look at the example project. Only the owner of this Space changes anything: duplicate "
            "it to train your own LoRAs.",
            Role.VISITOR: "You can look at the project that the owner has open, and draw test grids of its LoRAs. "
            "Only the owner changes anything else.",
            Role.OWNER: "You can change everything.",
        }[self]

    @property
    def refusal(self) -> str:
        """The message to someone with this role who tries something else."""
        if self is Role.GUEST:
            return "Only the owner of this Space may do that. Duplicate the Space to train your own LoRAs."
        return "Only the owner of the studio may do that. Visitors look, and draw test grids."


_CURRENT: ContextVar[Role] = ContextVar("role", default=Role.OWNER)
"""The role of the request that is being handled; code that runs without one is the owner's own."""


def current_role() -> Role:
    """Return the role of the request that is being handled."""
    return _CURRENT.get()


def is_owner() -> bool:
    """Return whether the request that is being handled is the owner's."""
    return current_role() is Role.OWNER


def require_owner() -> None:
    """Raise InputError unless the request is the owner's; for handlers of which a part is open to others."""
    if not is_owner():
        raise InputError(current_role().refusal, "Ask the owner.", code="role")


@contextmanager
def acting_as(role: Role) -> Iterator[None]:
    """Handle a request with a role inside the block."""
    token = _CURRENT.set(role)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def allowed(role: Role) -> Callable[[HandlerT], HandlerT]:
    """Declare that a handler may be called by this role and those above; without it only by the owner."""

    def declare(handler: HandlerT) -> HandlerT:
        handler.allowed_role = role  # type: ignore[attr-defined]
        return handler

    return declare


def role_needed(handler: Callable[..., Any]) -> Role:
    """Return the lowest role that may call a handler, also of one inside functools.partial."""
    inner = getattr(handler, "func", handler)
    declared = getattr(handler, "allowed_role", getattr(inner, "allowed_role", Role.OWNER))
    return declared if isinstance(declared, Role) else Role.OWNER


@dataclass
class Roles:
    """Knows the role of a request.

    - With accounts, the user name decides: that of `owner` or of `visitor`.
    - In a Space without them the author `space_owner` is the owner, or those who may change the Spaces of this
      organisation, by OAuth. `whoami` asks the Hub about a token; the answer counts for WHOAMI_SECONDS.
    - A local studio has no other users than its owner.
    """

    mode: Mode = Mode.LOCAL
    owner: Account | None = None
    visitor: Account | None = None
    space_owner: str = ""
    whoami: Callable[[str], Mapping[str, Any]] = field(default=lambda token: _ask_hub(token))
    clock: Callable[[], float] = time.monotonic
    _known: dict[str, tuple[float, bool]] = field(default_factory=dict)

    @property
    def are_needed(self) -> bool:
        """True unless everybody who reaches the studio is its owner."""
        return self.mode is not Mode.LOCAL or self.visitor is not None

    def of_request(self, request: Any) -> Role:
        """Return the role of a request of gradio's or starlette's; None is not a request at all."""
        return self.of(getattr(request, "username", None), session_of(request))

    def of(self, user: str | None, session: Mapping[str, Any]) -> Role:
        """Return the role of a user name that gradio has logged in, and of a session with the Hub's OAuth."""
        if self.owner is not None:
            if user == self.owner.user:
                return Role.OWNER
            return Role.VISITOR if self.visitor is not None and user == self.visitor.user else Role.GUEST
        if self.mode is Mode.LOCAL:
            return Role.OWNER
        if self.mode is Mode.SPACE and self._is_space_owner(session):
            return Role.OWNER
        return Role.GUEST

    def _is_space_owner(self, session: Mapping[str, Any]) -> bool:
        info = session.get("oauth_info")
        token = info.get("access_token") if isinstance(info, Mapping) else None
        if not self.space_owner or not isinstance(token, str) or not token:
            return False
        key = hashlib.sha256(token.encode()).hexdigest()
        until, answer = self._known.get(key, (0.0, False))
        if until > self.clock():
            return answer
        if len(self._known) >= MAX_TOKENS:
            self._known.clear()
        try:
            answer = self._owns_space(self.whoami(token))
        except Exception:  # the Hub refuses the token, or cannot be reached: asked again at the next request
            return False
        self._known[key] = (self.clock() + WHOAMI_SECONDS, answer)
        return answer

    def _owns_space(self, answer: Mapping[str, Any]) -> bool:
        if answer.get("name") == self.space_owner:
            return True
        return any(
            member.get("name") == self.space_owner and member.get("roleInOrg") in ORGANISATION_ROLES
            for member in answer.get("orgs") or ()
        )


def roles_for(
    mode: Mode, owner: Account | None, visitor: Account | None = None, environment: Mapping[str, str] = os.environ
) -> Roles:
    """Return the roles of a mode with its accounts; a Space's owner is SPACE_AUTHOR_NAME, else that of SPACE_ID."""
    author = environment.get("SPACE_AUTHOR_NAME") or environment.get("SPACE_ID", "").partition("/")[0]
    return Roles(mode, owner, visitor, space_owner=author if mode is Mode.SPACE else "")


def session_of(request: Any) -> Mapping[str, Any]:
    """Return the session of a request, which is in the scope if there is a SessionMiddleware; else an empty one."""
    scope = getattr(getattr(request, "request", None) or request, "scope", None)
    session = scope.get("session") if isinstance(scope, Mapping) else None
    return session if isinstance(session, Mapping) else {}


def _ask_hub(token: str) -> Mapping[str, Any]:
    from huggingface_hub import HfApi

    answer: Mapping[str, Any] = HfApi().whoami(token=token)
    return answer
