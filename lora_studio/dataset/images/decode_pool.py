"""Decode images of unknown origin in child processes with limits of memory and time.

An image file of a few hundred kilobytes can make a decoder take gigabytes or minutes. A child process runs
`decode_child`, which limits its own address space where the system can (not on Windows and macOS), and is killed after
TIME_LIMIT. It reads requests as lines of JSON and answers each with a line of JSON and the pixels. Children are used
again, and end when they are idle for IDLE_SECONDS or this process ends.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEMORY_LIMIT = 2 * 2**30  # bytes that a child may take
TIME_LIMIT = 120.0  # seconds per image; one at the limit of pixels takes 5 of an idle core
IDLE_SECONDS = 60.0
MAX_CHILDREN = 4
ROOT = Path(__file__).resolve().parents[3]  # of the package: a child must import this very copy
PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from lora_studio.dataset.images.decode_child import main; main(*map(float, sys.argv[1:]))"
)
# A decoder needs no other variables of the environment, and no secrets.
KEPT_VARIABLES = ("PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")

Answer = tuple[dict[str, Any], bytes, bytes]  # fields, RGB pixels, alpha channel (empty if there is none)


class DecodeFailed(Exception):
    """The error of a child that could not decode an image: the parts of an InputError."""

    def __init__(self, message: str, remedy: str, code: str) -> None:
        super().__init__(message)
        self.message, self.remedy, self.code = message, remedy, code


class OverLimit(Exception):
    """An image takes more memory or time than the limits allow, or crashes its decoder."""


@dataclass
class Child:
    """A child process; `is_new` until its first answer."""

    process: subprocess.Popen[bytes]
    is_new: bool = True

    @classmethod
    def start(cls, memory: int) -> Child:
        """Start a child that limits its memory to this many bytes."""
        arguments = [sys.executable, "-c", PROGRAM, str(ROOT), str(memory), str(IDLE_SECONDS)]
        environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        return cls(
            subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment | {"OMP_NUM_THREADS": "1"},
            )
        )

    def ask(self, request: bytes, seconds: float) -> Answer | None:
        """Return the answer to a request; None if the child ended. Raises OverLimit after `seconds`."""
        timed_out = threading.Event()

        def kill() -> None:
            timed_out.set()
            self.process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            answer = self._exchange(request)
        finally:
            timer.cancel()
        if answer is None and timed_out.is_set():
            raise OverLimit(f"decoding takes longer than the limit of {seconds:g} s")
        self.is_new = False
        return answer

    def _exchange(self, request: bytes) -> Answer | None:
        source, sink = self.process.stdin, self.process.stdout
        assert source is not None
        assert sink is not None
        try:
            source.write(request + b"\n")
            source.flush()
        except OSError:
            return None
        line = sink.readline()
        if not line.endswith(b"\n"):
            return None
        fields = json.loads(line)
        sizes = fields.pop("pixels", 0), fields.pop("alpha", 0)
        pixels, alpha = sink.read(sizes[0]), sink.read(sizes[1])
        return (fields, pixels, alpha) if (len(pixels), len(alpha)) == sizes else None

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue


@dataclass
class DecodePool:
    """At most `size` children, which are started when they are needed; several threads may use it."""

    size: int = min(MAX_CHILDREN, os.cpu_count() or 1)
    memory: int = MEMORY_LIMIT
    seconds: float = TIME_LIMIT
    _idle: list[Child] = field(default_factory=list)
    _places: threading.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._places = threading.Semaphore(self.size)

    def decode(self, path: Path, options: Mapping[str, Any]) -> Answer:
        """Return what `decode_child` answers for an image file. Raises DecodeFailed and OverLimit."""
        request = json.dumps({"path": str(path), **options}).encode()  # undecodable bytes of a name as surrogates
        with self._places:
            answer = self._ask(request)
        fields = answer[0]
        if "over_limit" in fields:
            raise OverLimit(f"decoding takes more than the limit of {self.memory / 2**30:.1f} GiB of memory")
        if "message" in fields:
            raise DecodeFailed(**fields)
        return answer

    def _ask(self, request: bytes) -> Answer:
        while True:
            child = self._take()
            was_new = child.is_new
            try:
                answer = child.ask(request, self.seconds)
            except BaseException:
                child.end()
                raise
            if answer is not None:
                self._idle.append(child)
                return answer
            child.end()
            if was_new:  # one that was idle may have ended by itself
                raise OverLimit("its decoder crashed")

    def _take(self) -> Child:
        try:
            return self._idle.pop()
        except IndexError:
            return Child.start(self.memory)

    def close(self) -> None:
        """End the idle children."""
        while self._idle:
            self._idle.pop().end()

    def forget(self) -> None:
        """Leave the children to the process that this one was forked from."""
        self._idle, self._places = [], threading.Semaphore(self.size)


POOL = DecodePool()
atexit.register(POOL.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOL.forget)
