"""Every exception that the studio raises on purpose.

StudioError                a message with the setting, the value and the remedy
├── InputError             wrong input: exit status 2
│   └── ConfigError        all problems of a configuration at once
└── JobError               the job itself failed: exit status 1
    ├── OutOfMemoryError   with the next memory saving to try
    ├── DiskFullError
    └── NonFiniteLossError
PeerOutOfMemoryError       another process of the same run ran out of memory
StopRequested              not an error: ends preparation or waiting after a stop request
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, EIO, ENOSPC, EROFS
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails


class StudioError(Exception):
    """An error to show to the user: what is wrong, and what to do about it.

    `message` names the setting and its value, `remedy` the next thing to do; `code` is a stable word for scripts.
    """

    exit_status = 1

    def __init__(self, message: str, remedy: str = "", *, code: str = "error") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy
        self.code = code

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class InputError(StudioError):
    """A setting, a file or a folder cannot be used as given."""

    exit_status = 2


# pydantic's messages for these are long, or name Python's types.
_MESSAGES = {
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "int_parsing": "should be a whole number",
    "int_type": "should be a whole number",
    "list_type": "should have at least one entry",
    "too_short": "should have at least one entry",
}


def validation_message(problem: ErrorDetails) -> str:
    """Return one problem of pydantic's report as a message for the user, like "should be a number"."""
    text = _MESSAGES.get(problem["type"], problem["msg"])
    return text.removeprefix("Value error, ").replace("Input should", "should", 1)


class ConfigError(InputError):
    """All problems of a configuration; `problems` has one line per problem."""

    def __init__(self, problems: Iterable[str], remedy: str = "") -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems), remedy, code="config")

    @classmethod
    def from_validation(cls, error: ValidationError) -> ConfigError:
        """Return pydantic's report as one line per field, with the value that was given."""
        lines = []
        for item in error.errors():
            name = ".".join(str(part) for part in item["loc"]) or "settings"
            given = item.get("input")
            shown = "" if isinstance(given, dict) else f" (given: {str(given)[:80]!r})"
            lines.append(f"{name}: {validation_message(item)}{shown}")
        return cls(lines, "Correct this setting." if len(lines) == 1 else "Correct these settings.")


class JobError(StudioError):
    """A job started and could not be finished."""


class OutOfMemoryError(JobError):
    """The GPU or the machine ran out of memory."""


class DiskFullError(JobError):
    """A write failed because the disk is full; the previous content of the file is intact."""


class NonFiniteLossError(JobError):
    """The loss stayed NaN or infinite; the last good training state is kept."""


class PeerOutOfMemoryError(RuntimeError):
    """Another process of a run on several GPUs ran out of memory; the message is that process's."""


class StopRequested(Exception):
    """A stop was requested while a job was waiting or preparing; caught by the code that ends the job."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise DiskFullError, JobError or InputError, with a remedy, for the system's errors of a write to `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT, EFBIG):
            raise DiskFullError(
                f"The disk is full: {path} could not be written.",
                "Free some disk space (the studio's cache folder can be deleted safely), then try again. "
                "Everything saved before is intact.",
                code="disk_full",
            ) from error
        if error.errno == EIO:
            raise JobError(
                f"The disk failed while {path} was written.",
                "Check the disk, then try again. Everything saved before is intact.",
                code="disk_error",
            ) from error
        if isinstance(error, PermissionError) or error.errno == EROFS:
            raise InputError(
                f"No permission to write {path}.", "Choose a folder that you can write to.", code="not_writable"
            ) from error
        raise
