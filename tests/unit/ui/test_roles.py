"""The role of a request: by its account in a shared studio, by the Hub's OAuth in a Space."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from lora_studio.errors import InputError
from lora_studio.ui.accounts import VISITOR_VARIABLE, Account, visitor_for
from lora_studio.ui.roles import (
    WHOAMI_SECONDS,
    Role,
    Roles,
    acting_as,
    allowed,
    current_role,
    require_owner,
    role_needed,
    roles_for,
)
from lora_studio.ui.server import Mode

ANN, BOB = Account("ann", "x"), Account("bob", "y")


def request(user: str | None = None, token: str | None = None) -> Any:
    """Return a request like gradio's, with the session of gradio's OAuth."""
    session = {"oauth_info": {"access_token": token, "userinfo": {"preferred_username": "me"}}} if token else {}
    return SimpleNamespace(username=user, request=SimpleNamespace(scope={"session": session}))


class Hub:
    """The Hub's answers by token; it counts the questions."""

    def __init__(self, **answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def __call__(self, token: str) -> dict[str, Any]:
        self.asked.append(token)
        if token not in self.answers:
            raise PermissionError("401")
        return self.answers[token]


def test_everybody_who_reaches_a_local_studio_is_its_owner() -> None:
    assert Roles().of_request(request()) is Role.OWNER
    assert Roles().of_request(None) is Role.OWNER
    assert not Roles().are_needed


def test_accounts_decide_in_a_shared_studio() -> None:
    roles = roles_for(Mode.SHARED, ANN, BOB, {})
    found = [roles.of_request(request(user)) for user in ("ann", "bob", "eve", "", None)]
    assert found == [Role.OWNER, Role.VISITOR, Role.GUEST, Role.GUEST, Role.GUEST]
    assert roles.of_request(None) is Role.GUEST
    assert roles_for(Mode.SHARED, ANN, None, {}).of_request(request("bob")) is Role.GUEST
    assert roles.of_request(request(token="any")) is Role.GUEST


def space(hub: Hub, **environment: str) -> Roles:
    roles = roles_for(Mode.SPACE, None, None, environment or {"SPACE_AUTHOR_NAME": "me", "SPACE_ID": "me/studio"})
    roles.whoami = hub
    return roles


@pytest.mark.parametrize(
    ("answer", "role"),
    [
        ({"name": "me", "orgs": []}, Role.OWNER),
        ({"name": "eve", "orgs": []}, Role.GUEST),
        ({"name": "eve", "orgs": [{"name": "me", "roleInOrg": "admin"}]}, Role.OWNER),
        ({"name": "eve", "orgs": [{"name": "me", "roleInOrg": "write"}]}, Role.OWNER),
        ({"name": "eve", "orgs": [{"name": "me", "roleInOrg": "read"}]}, Role.GUEST),
        ({"name": "eve", "orgs": [{"name": "me"}, {"name": "other", "roleInOrg": "admin"}]}, Role.GUEST),
        ({"name": "", "orgs": None}, Role.GUEST),
        ({}, Role.GUEST),
    ],
)
def test_the_hub_says_who_owns_a_space(answer: dict[str, Any], role: Role) -> None:
    assert space(Hub(token=answer)).of_request(request(token="token")) is role


def test_a_token_that_the_hub_refuses_proves_nothing() -> None:
    hub = Hub()
    roles = space(hub)
    assert roles.of_request(request(token="forged")) is Role.GUEST
    assert roles.of_request(request("me")) is Role.GUEST, "a user name without an account"
    assert roles.of_request(request()) is Role.GUEST
    assert roles.of("me", {"oauth_info": {"userinfo": {"preferred_username": "me"}}}) is Role.GUEST
    assert roles.of(None, {"oauth_info": {"access_token": ["x"]}}) is Role.GUEST
    assert hub.asked == ["forged"]


def test_the_author_is_that_of_the_id_and_nobody_owns_a_space_without_one() -> None:
    hub = Hub(mine={"name": "me"}, empty={"name": ""})
    assert space(hub, SPACE_ID="me/studio").of_request(request(token="mine")) is Role.OWNER
    nameless = space(hub, SYSTEM="spaces")
    assert nameless.of_request(request(token="empty")) is Role.GUEST
    assert nameless.of_request(request(token="mine")) is Role.GUEST


def test_the_hub_is_asked_once_in_a_while() -> None:
    hub, now = Hub(mine={"name": "me"}, other={"name": "eve"}), [0.0]
    roles = space(hub)
    roles.clock = lambda: now[0]
    for _ in range(3):
        assert roles.of_request(request(token="mine")) is Role.OWNER
        assert roles.of_request(request(token="other")) is Role.GUEST
    assert hub.asked == ["mine", "other"]
    now[0] += WHOAMI_SECONDS + 1
    hub.answers["mine"] = {"name": "sold"}
    assert roles.of_request(request(token="mine")) is Role.GUEST


def test_a_space_with_an_account_has_its_owner_by_that() -> None:
    roles = roles_for(Mode.SPACE, ANN, None, {"SPACE_AUTHOR_NAME": "me"})
    assert roles.of_request(request("ann")) is Role.OWNER
    assert roles.of_request(request("me")) is Role.GUEST


def test_a_handler_without_a_declaration_is_the_owners() -> None:
    @allowed(Role.GUEST)
    def looks(step: int) -> None: ...

    assert role_needed(lambda: None) is Role.OWNER
    assert role_needed(partial(lambda step: None, 1)) is Role.OWNER
    assert role_needed(looks) is role_needed(partial(looks, 1)) is Role.GUEST


def test_a_part_of_a_handler_can_be_the_owners() -> None:
    assert current_role() is Role.OWNER
    require_owner()
    with acting_as(Role.VISITOR), pytest.raises(InputError) as caught:
        require_owner()
    assert caught.value.code == "role"
    assert current_role() is Role.OWNER


def test_the_account_of_visitors_is_another_one() -> None:
    assert visitor_for(ANN, {VISITOR_VARIABLE: "bob:y"}) == BOB
    assert visitor_for(ANN, {}) is None
    assert visitor_for(None, {VISITOR_VARIABLE: "bob:y"}) is None
    for text in ("ann:other", "bob", "bob:", ":y", ""):
        with pytest.raises(InputError) as caught:
            visitor_for(ANN, {VISITOR_VARIABLE: text})
        assert caught.value.code == "auth"
