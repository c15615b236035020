"""Notify when a long job has ended: a command or a webhook of the user, from notify.toml in the studio's home.

```
command = ["notify-send", "LoRA Studio", "{run}: {status}"]   # run without a shell
url = "https://example.org/hook"                              # receives {"run", "status", "path"} as JSON
min_minutes = 5                                               # shorter jobs notify no one
```

Both are optional. The command gets LORA_STUDIO_RUN, LORA_STUDIO_STATUS and LORA_STUDIO_PATH, and of this process's
environment only what a program needs to start and to reach the desktop.
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from lora_studio.errors import StudioError
from lora_studio.settings.declare import Settings, parse_toml

NOTIFY_FILE = "notify.toml"  # in the studio's home
COMMAND_SECONDS = 30
URL_SECONDS = 10
PASSED_ON = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT"),
    *("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"),
)


class NotifySettings(Settings):
    """The content of notify.toml."""

    command: list[str] = Field(
        default=[], description="Program and arguments; {run}, {status} and {path} are filled in."
    )
    url: Annotated[str, Field(pattern=r"^(https?://\S+)?$")] = Field(
        default="", description="Webhook, by POST as JSON."
    )
    min_minutes: float = Field(default=5.0, ge=0, description="Jobs that took less do not notify.")

    @classmethod
    def load(cls, file: Path) -> NotifySettings:
        """Read notify.toml; the defaults if there is none. Raises InputError if it cannot be read."""
        try:
            text = file.read_text("utf-8")
        except FileNotFoundError:
            return cls()
        return cls.parse(parse_toml(text, str(file)))


@dataclass(frozen=True)
class EndedJob:
    """A job that has ended: the name of its folder, its state, the folder, and how long it took."""

    run: str
    status: str
    path: Path
    seconds: float

    @property
    def facts(self) -> dict[str, str]:
        """The values that a command or webhook gets."""
        return {"run": self.run, "status": self.status, "path": str(self.path)}


def notify(file: Path, job: EndedJob) -> list[str]:
    """Run the command and call the webhook of notify.toml for a job that has ended; return what did not work."""
    try:
        settings = NotifySettings.load(file)
    except (StudioError, OSError, ValueError) as error:
        return [f"{file.name} cannot be used: {error}"]
    if job.seconds < settings.min_minutes * 60:
        return []
    acts: list[tuple[str, Callable[[], str]]] = []
    if settings.command:
        acts.append(("command", lambda: _run(settings.command, job)))
    if settings.url:
        acts.append(("url", lambda: _post(settings.url, job)))
    problems = []
    for name, act in acts:
        try:
            problem = act()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            problem = str(error) or type(error).__name__
        if problem:
            problems.append(f"The {name} of {file.name} failed: {problem}")
    return problems


def _run(command: Sequence[str], job: EndedJob) -> str:
    """Run the command; return why it failed, empty if it did not."""
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment |= {f"LORA_STUDIO_{name.upper()}": value for name, value in job.facts.items()}
    done = subprocess.run(
        [_filled(argument, job) for argument in command],
        env=environment,
        cwd=job.path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    if not done.returncode:
        return ""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return f"exit status {done.returncode}" + (f", {lines[-1][:200]}" if lines else "")


def _filled(argument: str, job: EndedJob) -> str:
    for name, value in job.facts.items():
        argument = argument.replace(f"{{{name}}}", value)
    return argument


def _post(url: str, job: EndedJob) -> str:
    """Post the facts of the job to a URL; raise OSError if it does not respond with success."""
    request = urllib.request.Request(
        url, json.dumps(job.facts).encode(), {"Content-Type": "application/json", "User-Agent": "lora-studio"}
    )
    with urllib.request.urlopen(request, timeout=URL_SECONDS):
        return ""
