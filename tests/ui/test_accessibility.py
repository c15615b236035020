"""Every state of the interface in light, in dark and on a phone, checked by axe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.application import Running
from tests.support.interface_states import LOOKS, set_look, visit_states

pytestmark = pytest.mark.slow

FAILING = ("serious", "critical")
RUN = """async () => (await axe.run({ resultTypes: ['violations'] })).violations"""


def test_no_state_has_a_serious_violation(running: Running, open_page: Callable[..., Any]) -> None:
    axe = pytest.importorskip("axe_playwright_python.base", reason="needs axe: pip install axe-playwright-python")
    page = open_page()
    found = []
    for state in visit_states(page, running.home):
        if not page.evaluate("'axe' in window"):  # the page was loaded again
            page.evaluate(axe.AXE_SCRIPT)
        for look in (*LOOKS[1:], LOOKS[0]):  # the next state is opened in the first one
            set_look(page, look)
            for violation in page.evaluate(RUN):
                if violation["impact"] in FAILING:
                    found += [f"{state.name}, {look.name}: {line}" for line in lines_of(violation)]
    assert not found, "\n".join(found)


def lines_of(violation: dict[str, Any]) -> list[str]:
    """Return a line for each element: the rule, its selector and its HTML, and what is wrong with it."""
    rule = f"{violation['id']} ({violation['impact']})"
    return [
        f"{rule}: {node['target']} {node['html'][:200]}\n    {node['failureSummary']}" for node in violation["nodes"]
    ]
