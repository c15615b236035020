"""The project's prose uses the words that the field uses: phrases that once replaced them do not come back.

Every docstring, comment and string of the source is searched, and the documents that ship. To ban another phrase, add a
row to `BANNED` with the word to write instead.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("lora_studio", "benchmarks", "tools", "tests")
SOURCES = [ROOT / "app.py", *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for folder in ("lora_studio", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.md")),
    *sorted((ROOT / "lora_studio").rglob("*.js")),
    *sorted((ROOT / "lora_studio").rglob("*.html")),
    *sorted((ROOT / "presets").glob("*.toml")),
]
# A regular expression, and what to write instead.
BANNED = {
    r"anew": "again, from scratch",
    r"comput\w+ (?:\w+ )?twice": "recompute, activation checkpointing",
    r"by heart": "overfitting, memorise",
    r"(?<!there )(?:is|are) no (?!longer\b|more than\b)": "is not a",
    r"(?:newest|last) so many": "the N most recent",
    r"so many": "N, the given number of",
    r"stands?|stood": "is, contains",
    r"lies|lay": "is, is in",
    r"told|tells": "report, log, return, say which",
    r"nobody": "no one, nothing, or name who",
    r"mend(?:s|ed|ing)?": "fix",
    r"reckon\w*|foretold": "estimate, predict",
    r"held[- ]out (?:share|images?|loss\w*|sets?)": "validation split, validation loss",
    r"at work": "running, in use",
    r"(?:given|gives|give) out": "returned, saved, EMA weights",
    r"out of the way": "set aside, rejected",
    r"go(?:es)? on": "continue, resume",
    r"for ever": "forever, endlessly",
    r"(?:that|what) (?:is|are) there": "existing",
    r"(?:is|are|be|was|were) there (?:twice|as)": "exists, is duplicated",
    r"(?:something|anything|nothing|things?|one thing) to look at": "to check",
    r"save where|save for": "except where",
    r"in one go": "at once",
    r"a word (?:on|about|of why)": "a note on",
    r"in words": "as text",
    r"alike": "similar, identical, equally",
    r"spared": "not used for training",
    r"misfit|unfit": "an error, named as one",
}
PATTERNS = {re.compile(rf"\b(?:{phrase})\b", re.I): instead for phrase, instead in BANNED.items()}
NOT_A_VERB = re.compile(
    r"(what|whether|how|which|where|why|who|when|whatever|the|an?|all|every|each|no|none|those|one|as many|as|of)\b",
    re.I,
)


def prose(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every string and comment."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)):
            yield token.start[0], token.string


def found_in(texts: Iterator[tuple[int, str]]) -> list[str]:
    """Return each banned phrase with its line and what to write instead."""
    return [
        f"line {line + text.count(chr(10), 0, match.start())}: {match[0]!r}; write: {instead}"
        for line, text in texts
        for pattern, instead in PATTERNS.items()
        for match in pattern.finditer(text)
    ]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [path for path in SOURCES if path != Path(__file__)], ids=name_of)
def test_source_has_no_banned_phrase(path: Path) -> None:
    assert found_in(prose(path.read_text("utf-8"))) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_document_has_no_banned_phrase(path: Path) -> None:
    assert found_in(enumerate(path.read_text("utf-8").splitlines(), 1)) == []


@pytest.mark.parametrize("path", [path for path in SOURCES if not name_of(path).startswith("tests/")], ids=name_of)
def test_docstrings_of_functions_begin_with_a_verb(path: Path) -> None:
    odd = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not (text := ast.get_docstring(node)):
            continue
        is_property = any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
        match = NOT_A_VERB.match(text)
        if match and not (is_property and match[0].lower() in ("the", "a", "an", "all", "every", "each")):
            odd.append(f"line {node.lineno}: {node.name}: {text.splitlines()[0]}")
    assert odd == []


def test_finds_a_banned_phrase_in_docstrings_comments_and_f_strings() -> None:
    source = '"""Make it anew."""\n# learned by heart\nname = f"{1} stands here"\n'
    assert [line.split(":")[0] for line in found_in(prose(source))] == ["line 1", "line 2", "line 3"]
