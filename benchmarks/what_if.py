"""CPU time of the what-if plots over as many separate plans, and milliseconds per variable.

OMP_NUM_THREADS=1 python -m benchmarks.what_if
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from lora_studio.planning.plan import plan, read_inputs
from lora_studio.planning.what_if import Variable, what_if

ATTEMPTS = 5
CASES: dict[str, dict[str, Any]] = {
    "24 images, 12 GiB": {"images": 24, "kind": "style", "base": "Illustrious XL", "vram_gib": 12.0},
    "400 images, 2 hours": {"images": 400, "vram_gib": 24.0, "hours": 2},
}


def cpu_seconds(act: Callable[[], object]) -> float:
    """Return the least CPU time of several calls."""
    found = []
    for _ in range(ATTEMPTS):
        begin = time.process_time()
        act()
        found.append(time.process_time() - begin)
    return min(found)


def main() -> None:
    """Print one line per plan and variable."""
    for name, arguments in CASES.items():
        one_plan = cpu_seconds(partial(plan, **arguments))
        inputs = read_inputs(**arguments)
        for variable in Variable:
            rows = len(what_if(inputs, variable))
            spent = cpu_seconds(partial(what_if, inputs, variable))
            ratio = spent / (rows * one_plan)
            print(f"{name}, {variable.value}: {spent * 1000:.0f} ms, {ratio:.2f} of {rows} plans", flush=True)


if __name__ == "__main__":
    main()
