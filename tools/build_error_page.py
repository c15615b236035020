"""Build docs/errors.md from every error that the code raises: `python tools/build_error_page.py`.

What a code means is declared in tools/error_meanings.toml.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "errors.md"
MEANINGS = ROOT / "tools" / "error_meanings.toml"

sys.path.insert(0, str(ROOT))

from tools.error_catalogue import Catalogue, RaisedError  # noqa: E402

INTRODUCTION = """# Errors

Every error that the studio raises on purpose, by its code. The code is what scripts read (`data-code` of a card on the
page, `code` in `status.json`), the message says what is wrong, and the remedy what to do next. `{name}` is a part that
differs. [Troubleshooting](troubleshooting.md) begins from the symptom instead.

This page is generated from the code and `tools/error_meanings.toml` by `tools/build_error_page.py`.
"""
CONFIG_NOTE = """All problems of a configuration are reported at once, one line each. A value of the wrong type or
out of its bounds is named with its setting and what was given ("unet_lr: should be a number (given: 'abc')").
These lines have their remedy in them:"""


def error_page() -> str:
    """Return docs/errors.md."""
    catalogue = Catalogue()
    declared = read_meanings()
    meanings, remedies = declared["meanings"], declared["remedies"]
    codes = {error.code for error in catalogue.errors} | {"config"}
    if unknown := codes - set(meanings):
        raise SystemExit(f"Write what these codes mean to {MEANINGS.name}: {', '.join(sorted(unknown))}")
    lines = [INTRODUCTION]
    for code in sorted(codes):
        errors = [error for error in catalogue.errors if error.code == code]
        wrong_input = all(catalogue.kinds[error.kind] for error in errors)
        lines += [f"## `{code}` {{ #{code} }}", "", f"{meanings[code]} Exit status {2 if wrong_input else 1}.", ""]
        if code == "config":
            rows = {(text, "") for text, _ in catalogue.config_lines()}
            lines += [CONFIG_NOTE, "", *sorted(f"- {_cell(text)}" for text, _ in rows), ""]
        if errors:
            rows = dict.fromkeys((error.message, shown_remedy(error, remedies)) for error in errors)
            lines += ["| message | remedy |", "|---|---|"]
            lines += [*(f"| {_cell(message)} | {_cell(remedy)} |" for message, remedy in rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def read_meanings() -> dict[str, dict[str, str]]:
    """Return what each code means, and the remedies that are not texts in the code."""
    return tomllib.loads(MEANINGS.read_text("utf-8"))


def shown_remedy(error: RaisedError, remedies: dict[str, str]) -> str:
    """Return an error's remedy, or the one that is declared for its code if it is known only when it is raised."""
    return remedies.get(error.code, error.remedy) if is_placeholder(error.remedy) else error.remedy


def is_placeholder(text: str) -> bool:
    """Return whether all of a text is known only when it is raised."""
    return re.fullmatch(r"\{\w+\}", text) is not None


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[").replace("*", "\\*")
    return text.replace("_", "\\_").replace("`", "")


def main() -> None:
    PAGE.write_text(error_page(), "utf-8")


if __name__ == "__main__":
    main()
