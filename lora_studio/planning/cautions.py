"""Warnings about a plan or a trigger word."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Caution(BaseModel):
    """A warning: a stable `code`, a `message` with the setting and its value, and `why` it matters."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    why: str = ""
