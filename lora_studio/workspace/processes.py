"""Start processes that outlive the one that starts them."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO


def start_detached(
    command: Sequence[str], log: BinaryIO, folder: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, with `folder` as its working directory; its output goes to `log`.

    `environment` is all that it gets, see `worker_environment`.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd=folder,
        env=dict(environment),
    )
