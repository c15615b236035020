"""Damage files as crashes, bad disks and hostile senders do, and collect what the functions that read them raise."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lora_studio.errors import StudioError

WRONG = (None, -1, 1e308, "x", "\0", "../../x", [], {}, [None], {"x": 1})
Read = Callable[[], object]


def damaged(data: bytes, seed: int, flips: int = 12, within: int | None = None) -> Iterator[tuple[str, bytes]]:
    """Yield names and variants of a file's content: cut off, zeroed, bits flipped in its first `within` bytes."""
    size = len(data)
    for end in sorted({0, 1, size // 4, size // 2, max(0, size - 2), max(0, size - 1)}):
        yield f"cut off at {end}", data[:end]
    yield "zeroed", bytes(size)
    yield "second half zeroed", data[: size // 2] + bytes(size - size // 2)
    yield "NUL inserted", data[: size // 3] + b"\0\0\0" + data[size // 3 :]
    yield "appended", data + b"\xff\0garbage"
    yield "invalid UTF-8", data[: size // 2] + b"\xff\xfe\x80" + data[size // 2 :]
    source = random.Random(seed)
    for number in range(flips):
        position = source.randrange(min(size, within or size))
        flipped = data[position] ^ (1 << source.randrange(8))
        yield f"flip {number} at {position}", data[:position] + bytes([flipped]) + data[position + 1 :]


def wrong_types(data: bytes, seed: int, limit: int = 40) -> Iterator[tuple[str, bytes]]:
    """Yield variants of a JSON document, or of lines of JSON, in which one value has another type."""
    is_document = data.lstrip()[:1] in b"{[" and _is_json(data)
    lines = [data] if is_document else data.splitlines()
    found = [(index, path) for index, line in enumerate(lines) for path in _paths(json.loads(line))]
    source = random.Random(seed)
    for index, path in source.sample(found, min(limit, len(found))):
        value = source.choice(WRONG)
        changed = json.dumps(_with_value(json.loads(lines[index]), path, value)).encode()
        yield f"line {index}, {path} = {value!r}", b"\n".join([*lines[:index], changed, *lines[index + 1 :], b""])


def failures(file: Path, variants: Iterable[tuple[str, bytes]], reads: Iterable[Read]) -> list[str]:
    """Return what the reads raise beside StudioErrors, or change in the file's folder, for all variants of a file."""
    reads = list(reads)
    original, found = file.read_bytes(), []
    for name, data in variants:
        file.write_bytes(data)
        before = sorted(path.name for path in file.parent.iterdir())
        for read in reads:
            try:
                read()
            except StudioError:
                continue
            except Exception as error:
                found.append(f"{file.name} {name}: {type(error).__name__}: {error}")
        if not file.is_file() or file.read_bytes() != data or sorted(p.name for p in file.parent.iterdir()) != before:
            found.append(f"{file.name} {name}: the folder changed")
    file.write_bytes(original)
    return found


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))


def _with_value(document: Any, path: tuple[Any, ...], value: object) -> Any:
    if not path:
        return value
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document
