"""Every error that the code can raise: each has a code with one meaning, and a remedy; docs/errors.md lists them."""

from __future__ import annotations

import re
import textwrap
from collections import defaultdict
from pathlib import Path

import pytest

from tools import error_catalogue
from tools.build_error_page import PAGE, error_page, is_placeholder, read_meanings, shown_remedy
from tools.error_catalogue import Catalogue

ROOT = Path(__file__).parents[2]
CATALOGUE = Catalogue()
DECLARED = read_meanings()


def test_all_errors_are_found() -> None:
    calls = 0
    for file in (ROOT / "lora_studio").rglob("*.py"):
        calls += len(re.findall(r"\braise (?:Input|Job)Error\(", file.read_text("utf-8")))
    assert calls > 250
    places = {error.where for error in CATALOGUE.errors if error.kind in ("InputError", "JobError")}
    assert len(places) >= calls - 10  # some pass on the message of a worker process
    assert {"base_kind", "out_of_memory", "nan", "lora_file", "disk_full"} <= {error.code for error in CATALOGUE.errors}


def test_every_error_has_a_remedy() -> None:
    for error in CATALOGUE.errors:
        remedy = shown_remedy(error, DECLARED["remedies"])
        assert remedy.strip(), error
        assert not is_placeholder(remedy), error
        assert error.message.strip(), error


def test_every_line_of_a_configuration_error_says_what_to_do() -> None:
    lines = CATALOGUE.config_lines()
    assert len(lines) > 40
    for text, where in lines:
        assert re.search(r"[.:;,)}] [\w`{-]", text), f"{where}: {text}"


def test_every_code_has_one_meaning() -> None:
    codes = {error.code for error in CATALOGUE.errors} | {"config"}
    assert codes == set(DECLARED["meanings"])
    assert len(set(DECLARED["meanings"].values())) == len(codes)
    for code in codes:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", code), code


def test_a_code_has_one_exit_status() -> None:
    statuses = defaultdict(set)
    for error in CATALOGUE.errors:
        statuses[error.code].add(CATALOGUE.kinds[error.kind])
    assert {code for code, found in statuses.items() if len(found) > 1} == set()


def test_the_page_lists_the_errors() -> None:
    assert PAGE.read_text("utf-8") == error_page(), "run python tools/build_error_page.py"


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that reads the errors of a small package."""

    def read(source: str):
        package = tmp_path / "lora_studio"
        package.mkdir()
        (package / "errors.py").write_text("class StudioError(Exception): ...\nclass InputError(StudioError): ...\n")
        (package / "given.py").write_text(textwrap.dedent(source))
        monkeypatch.setattr(error_catalogue, "ROOT", tmp_path)
        monkeypatch.setattr(error_catalogue, "PACKAGE", package)
        return [(e.code, e.message, e.remedy) for e in Catalogue().errors]

    return read


def test_texts_of_an_error_are_found_through_its_callers(catalogue) -> None:
    source = """
        def make(path, what, remedy):
            return InputError(f"{path.name} {what}.", remedy, code="file")

        def read(path):
            if path:
                raise make(path, "is empty", "Fill it.")
            raise make(path, f"has {len(path)} lines", remedy="Shorten it.")
    """
    assert catalogue(source) == [
        ("file", "{path} is empty.", "Fill it."),
        ("file", "{path} has {path} lines.", "Shorten it."),
    ]


def test_an_error_without_remedy_or_code_is_seen(catalogue) -> None:
    assert catalogue('def read():\n    raise InputError("It is wrong.")\n') == [("", "It is wrong.", "")]


def test_alternatives_of_a_text_are_all_seen(catalogue) -> None:
    source = """
        def read(known):
            hint = ""
            if known:
                hint = f"Use {known}."
            raise InputError("It is wrong.", hint, code="wrong")
    """
    assert catalogue(source) == [("wrong", "It is wrong.", ""), ("wrong", "It is wrong.", "Use {known}.")]
