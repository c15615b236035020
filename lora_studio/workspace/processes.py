"""Start processes that outlive the one that starts them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

# Flags of Windows' CreateProcess, which `subprocess` has on Windows only. Without them a process ends with the console
# of the one that starts it; other systems have sessions for that.
CREATE_NEW_PROCESS_GROUP, CREATE_NO_WINDOW = 0x00000200, 0x08000000


def creation_flags(platform: str = sys.platform) -> int:
    """Return the flags for a process that outlives the console of the one that starts it."""
    return CREATE_NEW_PROCESS_GROUP | CREATE_NO_WINDOW if platform == "win32" else 0


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
        creationflags=creation_flags(),
        cwd=folder,
        env=dict(environment),
    )
