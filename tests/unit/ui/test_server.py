"""The mode and the hosts of the studio, and the guard against requests of other sites."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.datastructures import Headers

from lora_studio.errors import InputError
from lora_studio.ui.server import Guard, Hosts, Mode, hosts_for, mode_for, share_names


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        ({"host": "localhost:7860"}, True),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, True),
        ({"host": "localhost:7860", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, True),
        ({}, False),
        ({"host": "evil.example"}, False),
        ({"host": "[::1"}, False),
        ({"host": "localhost:7860", "origin": "https://evil.example"}, False),
        ({"host": "localhost:7860", "origin": "null"}, False),
        ({"host": "localhost:7860", "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}, False),
    ],
)
def test_the_guard_refuses_other_sites(headers: dict[str, str], accepted: bool) -> None:
    app: Any = None
    assert (Guard(app, Hosts()).refusal(Headers(headers)) == "") is accepted


def test_two_host_headers_are_refused() -> None:
    app: Any = None
    headers = Headers(raw=[(b"host", b"localhost"), (b"host", b"localhost")])
    assert Guard(app, Hosts()).refusal(headers)


def test_allowed_hosts_are_accepted_and_make_the_studio_shared() -> None:
    hosts = hosts_for(None, {}, allowed=["box.tail1234.ts.net", "https://Abc.ngrok.app:443/", "10.0.0.7"])
    for name in ("box.tail1234.ts.net:7860", "abc.ngrok.app", "10.0.0.7:7860", "localhost"):
        assert hosts.allows(name), name
    assert not hosts.allows("evil.example")
    assert mode_for(share=False, host=None, allowed=["abc.ngrok.app"], environment={}) is Mode.SHARED
    with pytest.raises(InputError) as caught:
        hosts_for(None, {}, allowed=["https://"])
    assert caught.value.code == "host"


def test_modes_and_hosts() -> None:
    assert mode_for(share=False, host=None, environment={}) is Mode.LOCAL
    assert mode_for(share=False, host="localhost", environment={}) is Mode.LOCAL
    assert mode_for(share=True, host=None, environment={}) is Mode.SHARED
    assert mode_for(share=False, host="0.0.0.0", environment={}) is Mode.SHARED
    assert mode_for(share=False, host=None, environment={"SYSTEM": "spaces"}) is Mode.SPACE
    assert not hosts_for(None, {}).allows("10.0.0.1:7860")
    assert hosts_for("0.0.0.0", {}).allows("10.0.0.1:7860")
    assert not hosts_for("0.0.0.0", {}).allows("evil.example")
    assert hosts_for(None, {"SPACE_HOST": "me-studio.hf.space,own.example"}).allows("own.example")
    assert Hosts().allows("[::1]:7860")
    assert share_names([None, "https://a1b2.gradio.live", ""]) == {"a1b2.gradio.live"}
