"""What the server keeps of open and closed pages."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import gradio as gr
import pytest

from lora_studio.ui import launch
from lora_studio.ui.sessions import MAX_CLOSED, Sessions
from lora_studio.workspace.project import Home


@pytest.fixture
def sessions() -> Sessions:
    with gr.Blocks() as blocks:
        gr.State(["start"])
        gr.Button("Start")
    found = Sessions()
    found.set_blocks(blocks)
    return found


def component(sessions: Sessions, kind: type[gr.blocks.Block]) -> int:
    return next(number for number, block in sessions.blocks.blocks.items() if isinstance(block, kind))


def test_pages_have_states_and_changed_components_of_their_own(sessions: Sessions) -> None:
    state, button = component(sessions, gr.State), component(sessions, gr.Button)
    sessions["one"][state].append("changed")
    sessions["one"][button] = gr.Button("Stop", render=False)
    assert (sessions["one"][state], sessions["two"][state]) == (["start", "changed"], ["start"])
    assert (sessions["one"][button].value, sessions["two"][button].value) == ("Stop", "Start")


def test_no_component_is_described_for_links(sessions: Sessions) -> None:
    session = sessions["page"]
    for number, block in sessions.blocks.blocks.items():
        session[number] = block
        session._update_config(number)
        session._update_value_in_config(number, "value")
    assert list(session.components) == []


def test_the_oldest_of_many_closed_pages_are_dropped_and_open_ones_stay(sessions: Sessions) -> None:
    names = [f"closed {number}" for number in range(MAX_CLOSED + 3)]
    for name in ("open", *names):
        sessions[name].is_closed = name != "open"
    sessions.delete_all_expired_state()
    assert list(sessions.session_data) == ["open", *names[3:]]
    assert set(sessions.time_last_used) == set(sessions.session_data)


@pytest.mark.parametrize(("seconds", "is_kept"), [(-5, True), (5, False)])
def test_a_closed_page_is_dropped_when_its_time_is_over(sessions: Sessions, seconds: int, is_kept: bool) -> None:
    session = sessions["page"]
    session.is_closed = True
    sessions.time_last_used["page"] = datetime.now() - timedelta(seconds=session.STATE_TTL_WHEN_CLOSED + seconds)
    sessions.delete_all_expired_state()
    assert ("page" in sessions) is is_kept


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[launch.Served]:
    monkeypatch.setattr(Home, "check_private", lambda home: None)  # pytest's folders are below the temporary one
    found = launch.serve(Home(tmp_path_factory.mktemp("home")))
    yield found
    found.close()


def test_a_served_studio_keeps_its_sessions_in_it(served: launch.Served) -> None:
    assert isinstance(served.blocks.state_holder, Sessions)
    assert served.blocks.app.state_holder is served.blocks.state_holder
