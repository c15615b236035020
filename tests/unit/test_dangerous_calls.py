"""No code of the studio runs shells or pickles, loads code from models, or needs a POSIX system to be imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "app.py", *sorted((ROOT / "lora_studio").rglob("*.py"))]
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_NAMES = {
    "os.fork",
    "os.geteuid",
    "os.getuid",
    "os.killpg",
    "os.setsid",
    "os.uname",
    "signal.SIGKILL",
    "signal.SIGHUP",
}
SHELLS = {"os.popen", "os.system", "subprocess.getoutput", "subprocess.getstatusoutput"}
CODE_OF_MODELS = {"custom_pipeline", "trust_remote_code"}


def nodes_in(tree: ast.AST, *, in_function: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Yield every node with whether it is inside a function."""
    for node in ast.iter_child_nodes(tree):
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield node, inside
        yield from nodes_in(node, in_function=inside)


def problems(source: str) -> Iterator[str]:
    """Yield what a source does that it must not, with its line."""
    for node, in_function in nodes_in(ast.parse(source)):
        for problem in problems_of(node, in_function=in_function):
            yield f"line {getattr(node, 'lineno', 0)}: {problem}"


def problems_of(node: ast.AST, *, in_function: bool) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        first = node.module if isinstance(node, ast.ImportFrom) else None
        names = {(first or alias.name).split(".")[0] for alias in node.names}
        if "pickle" in names and {alias.name for alias in node.names} != {"UnpicklingError"}:
            yield "imports pickle"
        if not in_function and names & POSIX_MODULES:
            yield f"needs {', '.join(names & POSIX_MODULES)} at import"
    if isinstance(node, ast.Attribute) and ast.unparse(node) in POSIX_NAMES | SHELLS:
        yield f"uses {ast.unparse(node)}"
    if isinstance(node, ast.Call):
        yield from problems_of_call(node)


def problems_of_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in ("eval", "exec", "compile"):
        yield f"calls {name}"
    if given.get("shell", "False") != "False":
        yield "runs a shell"
    if "preexec_fn" in given:
        yield "uses preexec_fn"
    if CODE_OF_MODELS & given.keys():
        yield "loads code of a model"
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "unpickles with torch.load"
    loads_weights = name.endswith(".from_pretrained") and not name.endswith(
        ("Processor.from_pretrained", "Tokenizer.from_pretrained")
    )
    if loads_weights and given.get("use_safetensors") != "True":
        yield "may load pickled weights"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_source_does_nothing_dangerous(file: Path) -> None:
    assert list(problems(file.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import fcntl",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "subprocess.run(['ls'], shell=flag)",
        "subprocess.Popen(['ls'], preexec_fn=os.setsid)",
        "os.kill(1, signal.SIGKILL)",
        "eval('1')",
        "torch.load('x.pt')",
        "AutoModel.from_pretrained('x')",
        "AutoModel.from_pretrained('x', use_safetensors=True, trust_remote_code=False)",
    ],
)
def test_danger_is_found(source: str) -> None:
    assert list(problems(source))


@pytest.mark.parametrize(
    "source",
    [
        "def limit():\n    import resource",
        "subprocess.run(['ls'])",
        "torch.load('x.pt', weights_only=True)",
        "AutoModel.from_pretrained('x', use_safetensors=True)",
        "CLIPTokenizer.from_pretrained('x')",
        "text = 'AutoModel.from_pretrained()'",
    ],
)
def test_what_is_safe_is_no_problem(source: str) -> None:
    assert not list(problems(source))
