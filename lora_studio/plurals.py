"""Counts with their nouns and verbs."""

from __future__ import annotations


def format_count(number: int, noun: str) -> str:
    """Return a number with its noun: "1 image", "24 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_share(part: int, total: int, noun: str, singular: str, plural: str) -> str:
    """Return a part of a number with its verb: "1 of 24 images has", "2 of 24 images have"."""
    return f"{part:,} of {format_count(total, noun)} {singular if part == 1 else plural}"
