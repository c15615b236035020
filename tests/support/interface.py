"""The interface without a browser: calls its handlers with the values that a browser would send."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import gradio as gr
from gradio.context import LocalContext
from gradio.routes import App

from lora_studio.ui.accounts import Account
from lora_studio.ui.app import AppFrame, build_app
from lora_studio.ui.roles import Roles
from lora_studio.ui.server import Mode
from lora_studio.workspace.project import Home

OWNER = "ann"
VISITOR = "bob"


def error_code(card: str) -> str:
    """Return the code of the error that a card shows; empty if there is none."""
    found = re.search(r'role="alert" data-code="([^"]*)"', card)
    return found[1] if found else ""


def build_blocks(home: Home, mode: Mode = Mode.LOCAL) -> gr.Blocks:
    """Build the interface over a home, without its web application, which takes a third of the time."""
    accounts = (None, None) if mode is Mode.LOCAL else (Account(OWNER, "x"), Account(VISITOR, "y"))
    with patch.object(App, "create_app"):
        return build_app(home, mode, Roles(mode, *accounts))


class Interface:
    """The built interface over a home.

    `call(RunControl.stop_training, project="a", **contents)` runs a handler as its event would. Component values are
    given by name: `project` and `run` for the state of the frame, `project_list` for the header's dropdown, else the
    elem_id with `_` for `-`. The other components keep their last value. Changes are kept, and returned by name.

    Outside local mode, `user` is logged in: OWNER, VISITOR, or somebody else. With `blocks`, which `build_blocks`
    returned for this home, nothing is built.
    """

    def __init__(self, home: Home, mode: Mode = Mode.LOCAL, user: str = OWNER, blocks: gr.Blocks | None = None) -> None:
        self.user = user
        self.blocks = blocks or build_blocks(home, mode)
        self.contents: dict[int, Any] = {}
        self.names: dict[int, str] = {}
        states = [block for block in self.blocks.blocks.values() if isinstance(block, gr.State)]
        self.names[states[0]._id] = "run"  # the frame's own comes first
        for number, component in self.blocks.blocks.items():
            self.contents[number] = getattr(component, "value", None)
            if getattr(component, "elem_id", None):
                self.names[number] = (
                    "project_list" if component.elem_id == "project" else component.elem_id.replace("-", "_")
                )
            if isinstance(component, gr.BrowserState):
                self.names[number] = "project"
                self.contents[number] = component.default_value

    def open_project(self, project: str) -> dict[str, Any]:
        """Load the page with this project selected."""
        return self.call(AppFrame.load_page, project=project)

    def call(
        self, handler: Callable[..., Any], pick: str | None = None, presses: object = None, **contents: Any
    ) -> dict[str, Any]:
        """Run a handler; `pick` is what a `pick_button` sends, `presses` are the keys that a script sends."""
        block = self._block(handler)
        numbers = {name: number for number, name in self.names.items()}
        for name, value in contents.items():
            self.contents[numbers[name]] = value
        given = [self.contents[component._id] for component in block.inputs]
        arguments: list[Any] = [dict(zip(block.inputs, given, strict=True))] if block.inputs_as_dict else [*given]
        if pick is not None or presses is not None:
            arguments.append(gr.EventData(None, {"pick": pick, "presses": presses}))
        return self._apply(self.run(block.fn, *arguments))

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of an event as gradio does, in a request of the user."""
        token = LocalContext.request.set(SimpleNamespace(username=self.user))  # type: ignore[arg-type]
        try:
            return function(*arguments)
        finally:
            LocalContext.request.reset(token)

    def contents_of(self, name: str) -> Any:
        """Return the current value of a component."""
        return self.contents[next(number for number, known in self.names.items() if known == name)]

    def is_wired(self, handler: Callable[..., Any]) -> bool:
        """Return whether an event calls this handler."""
        return any(_qualified_name(block.fn) == _qualified_name(handler) for block in self.blocks.fns.values())

    def _block(self, handler: Callable[..., Any]) -> Any:
        for block in self.blocks.fns.values():
            if _qualified_name(block.fn) == _qualified_name(handler):
                return block
        raise LookupError(_qualified_name(handler))

    def _apply(self, updates: Any) -> dict[str, Any]:
        """Apply updates; return them by name: a value, or a dictionary of changed properties."""
        shown: dict[str, Any] = {}
        assert updates != {}, "gradio takes an empty dictionary for too few values: return gr.skip()"
        if not isinstance(updates, dict) or "__type__" in updates:
            return shown
        for component, update in updates.items():
            number = component._id
            if isinstance(update, gr.blocks.Block):
                update = {**update._constructor_args[0], "__type__": "update"}
            if isinstance(update, dict) and update.get("__type__") == "update":
                changed = {name: value for name, value in update.items() if name != "__type__"}
                if "value" in changed:
                    self.contents[number] = changed["value"]
            else:
                changed = self.contents[number] = update
            shown[self.names.get(number, f"#{number}")] = changed
        return shown


def _qualified_name(handler: Callable[..., Any] | None) -> str:
    """Return `Class.method`, which wrappers made with functools.wraps keep."""
    return getattr(handler, "__qualname__", "")
