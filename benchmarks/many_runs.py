"""Opening a project with 200 runs over opening one with 2: the first load of the page, and later ones.

Both have the same images; each run has its events, two checkpoints and a LoRA. No browser is needed: the handler is
called as the page calls it.

    python -m benchmarks.many_runs
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from lora_studio.ui.app import AppFrame
from lora_studio.workspace.project import Home
from tests.support.interface import Interface
from tests.support.jobs import make_project, make_run

COUNTS = {"few": 2, "many": 200}
ROUNDS = 3


def main() -> None:
    """Print the CPU seconds of the first load of each project, then the best of later ones, and the ratios."""
    first, later = {}, {}
    with tempfile.TemporaryDirectory(dir=Path.home()) as folder:
        home = Home(Path(folder))
        for name, count in COUNTS.items():
            project = make_project(home, name)
            for _ in range(count):
                make_run(project)
        page = Interface(home)
        page.call(AppFrame.load_page, project="few")  # imports what is imported late
        for name in COUNTS:
            seconds = []
            for _ in range(ROUNDS + 1):
                started = time.process_time()
                page.call(AppFrame.load_page, project=name)
                seconds.append(time.process_time() - started)
            first[name], later[name] = seconds[0], min(seconds[1:])
        page.blocks.close(verbose=False)
    for title, found in (("first load", first), ("later loads", later)):
        print(
            f"{title}: {found['many']:.2f} s over {found['few']:.2f} s: {found['many'] / found['few']:.1f}", flush=True
        )


if __name__ == "__main__":
    main()
