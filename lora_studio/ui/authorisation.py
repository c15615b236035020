"""The check of the role in every handler of the built page, and the controls that are locked on the pages of others."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.context import LocalContext

from lora_studio.ui.roles import Role, Roles, acting_as, current_role, is_owner, role_needed
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.html import TEMPLATES

TEMPLATES.globals["is_owner"] = is_owner
PASSIVE = frozenset({"tick", "select", "change", "blur", "then", "success", "failure", "load", "expand", "collapse"})
"""Events that the page fires without a wish of its user: for others than the owner they do nothing, without a word."""
LOCKED = "locked"  # class of a HTML component whose buttons are greyed out, see pick.js
CONTROLS = (
    gr.Button,
    gr.UploadButton,
    gr.Textbox,
    gr.Number,
    gr.Dropdown,
    gr.Radio,
    gr.Checkbox,
    gr.CheckboxGroup,
    gr.Slider,
    gr.File,
    gr.HTML,
)


def authorise(blocks: gr.Blocks, roles: Roles) -> None:
    """Make each handler check the role of its request first; one without a declaration runs for the owner only.

    No event is listed for clients: gradio writes the list of them, with all their choices, into each page.
    Raises TypeError for a coroutine or a generator, which would run after the check.
    """
    locks = locks_of(blocks)
    for event in blocks.fns.values():
        event.api_visibility = "private"
        if event.fn is not None:
            is_passive = all(name in PASSIVE for _, name in event.targets)
            event.fn = _checked(event.fn, roles, locks, is_passive=is_passive)


def locks_of(blocks: gr.Blocks) -> dict[Block, Role]:
    """Return the controls that something can be done with, with the lowest role that may do it."""
    locks: dict[Block, Role] = {}
    for event in blocks.fns.values():
        for number, name in event.targets:
            component = blocks.blocks.get(number) if number is not None else None
            if event.fn is not None and name not in PASSIVE and isinstance(component, CONTROLS):
                locks[component] = min(_role_of(event.fn), locks.get(component, Role.OWNER))
    return {component: role for component, role in locks.items() if role > Role.GUEST}


def lock_controls(updates: Updates, locks: Mapping[Block, Role]) -> Updates:
    """Return updates that also disable the controls that the current role may not use."""
    role = current_role()
    locked = {component for component, needed in locks.items() if role < needed}
    kept = {component: update for component, update in updates.items() if component not in locked}
    return kept | {component: _disabled(component, updates.get(component, gr.skip())) for component in locked}


def _checked(
    handler: Callable[..., Any], roles: Roles, locks: Mapping[Block, Role], *, is_passive: bool
) -> Callable[..., Any]:
    needed = _role_of(handler)
    if inspect.iscoroutinefunction(handler) or inspect.isgeneratorfunction(handler):
        raise TypeError(f"{handler} is a coroutine or a generator, whose role cannot be checked")

    @functools.wraps(handler)
    def checked(*given: Any, **named: Any) -> Any:
        role = roles.of_request(LocalContext.request.get(None))
        if role < needed:
            if is_passive:
                return gr.skip()
            raise gr.Error(role.refusal, print_exception=False)
        with acting_as(role):
            result = handler(*given, **named)
            if role is Role.OWNER or not isinstance(result, dict) or "__type__" in result:
                return result
            return lock_controls(result, {item: lock for item, lock in locks.items() if item in result})

    return checked


def _role_of(handler: Callable[..., Any]) -> Role:
    """Return the role that a handler needs. Gradio's own, which shows who is signed in with the Hub, is for all."""
    is_sign_in = isinstance(getattr(handler, "__self__", None), gr.LoginButton)
    return Role.GUEST if is_sign_in else role_needed(handler)


def _disabled(component: Block, update: Any) -> dict[str, Any]:
    """Return an update, as gradio takes it, that also disables the component, or the buttons in its HTML."""
    if isinstance(update, Block):
        update = {**update.constructor_args, "__type__": "update"}
    elif not isinstance(update, dict) or update.get("__type__") != "update":
        update = gr.update(value=update)
    if isinstance(component, gr.HTML):
        return {**update, "elem_classes": [*component.elem_classes, LOCKED]}
    return {**update, "interactive": False}
