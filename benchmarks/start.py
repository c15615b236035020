"""CPU time from starting `python app.py` to its first page, over that of a gradio page with one line of text.

Both are separate processes on free ports, each started several times in turn; the least counts.

    OMP_NUM_THREADS=1 python -m benchmarks.start
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from tests.support.application import ROOT, free_port

ATTEMPTS = 5
WAIT_SECONDS = 120.0
POLL_SECONDS = 0.02
EMPTY_PAGE = """
import sys
import gradio as gr

with gr.Blocks() as page:
    gr.Markdown("empty")
page.launch(server_port=int(sys.argv[1]), ssr_mode=False, quiet=True, _frontend=False)
"""


def seconds_to_first_page(command: list[str], port: int) -> float:
    """Start a server, wait until it answers on `port`, stop it; return the CPU seconds that it used until then."""
    process = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + WAIT_SECONDS
        while not _responds(f"http://127.0.0.1:{port}/"):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"no page within {WAIT_SECONDS:.0f} s: {command}")
            time.sleep(POLL_SECONDS)
        spent = process.cpu_times()
        return float(spent.user + spent.system)
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Start both in turn and print the ratio."""
    found: dict[str, list[float]] = {"studio": [], "empty": []}
    with tempfile.TemporaryDirectory(dir=Path.home()) as folder:
        for _ in range(ATTEMPTS):
            port = free_port()
            app = [sys.executable, "app.py", "--port", str(port), "--home", folder]
            found["studio"].append(seconds_to_first_page(app, port))
            port = free_port()
            found["empty"].append(seconds_to_first_page([sys.executable, "-c", EMPTY_PAGE, str(port)], port))
    studio, empty = min(found["studio"]), min(found["empty"])
    print(f"first page: {studio:.2f} s over {empty:.2f} s of an empty gradio page: {studio / empty:.2f}")


def _responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    main()
