"""No code of the studio runs shells or pickles, loads code from models, or needs a POSIX system to be imported.

Few files start processes, import modules by name or open connections; `ALLOWED` lists them.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
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
NETWORK = {
    "aiohttp",
    "ftplib",
    "gradio_client",
    "http.client",
    "httpx",
    "httpx2",
    "requests",
    "socket",
    "urllib.request",
}
PROCESSES = {
    "subprocess.Popen",
    "subprocess.call",
    "subprocess.check_call",
    "subprocess.check_output",
    "subprocess.run",
}
BY_NAME = {"__import__", "importlib.import_module", "runpy.run_module", "runpy.run_path"}
FOREIGN_PAGES = {"gr.load", "gr.load_chat", "gr.FileExplorer", "gr.Interface.load"}
TRANSFORMERS_MODELS = ("AutoModel", "Blip", "CLIP")
# What a file does that others must not, beside everything that `problems` finds anywhere.
ALLOWED = {
    "lora_studio/dataset/images/decode_pool.py": {"starts a process"},
    "lora_studio/device.py": {"starts a process"},
    "lora_studio/hub.py": {"opens connections"},  # these three name the exceptions of huggingface_hub's client
    "lora_studio/hub_files.py": {"opens connections"},
    "lora_studio/remote/job_script.py": {"starts a process"},  # in the job: uv, with the training
    "lora_studio/remote/service.py": {"opens connections"},
    "lora_studio/sharing/upload.py": {"opens connections"},
    "lora_studio/training/optim/optimizers.py": {"imports by name"},
    "lora_studio/training/optim/schedules.py": {"imports by name"},
    "lora_studio/training/reporting/trackers.py": {"imports by name"},
    "lora_studio/ui/server.py": {"opens connections"},  # it asks for the name of this computer
    "lora_studio/workspace/notify.py": {"starts a process", "opens connections"},  # as notify.toml says
    "lora_studio/workspace/processes.py": {"starts a process"},
}


def nodes_in(tree: ast.AST, *, in_function: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Yield every node with whether it is inside a function."""
    for node in ast.iter_child_nodes(tree):
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield node, inside
        yield from nodes_in(node, in_function=inside)


def problems(source: str, allowed: Collection[str] = ()) -> Iterator[str]:
    """Yield what a source does that it must not, with its line."""
    for node, in_function in nodes_in(ast.parse(source)):
        for problem in problems_of(node, in_function=in_function):
            if problem not in allowed:
                yield f"line {getattr(node, 'lineno', 0)}: {problem}"


def problems_of(node: ast.AST, *, in_function: bool) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        first = node.module if isinstance(node, ast.ImportFrom) else None
        names = {(first or alias.name).split(".")[0] for alias in node.names}
        if "pickle" in names and {alias.name for alias in node.names} != {"UnpicklingError"}:
            yield "imports pickle"
        imported = {first} if first else set()
        imported |= {f"{first}.{alias.name}" if first else alias.name for alias in node.names}
        if any(name == module or name.startswith(f"{module}.") for name in imported for module in NETWORK):
            yield "opens connections"
        if not in_function and names & POSIX_MODULES:
            yield f"needs {', '.join(names & POSIX_MODULES)} at import"
    if isinstance(node, ast.Attribute) and ast.unparse(node) in POSIX_NAMES | SHELLS:
        yield f"uses {ast.unparse(node)}"
    if isinstance(node, ast.Call):
        yield from problems_of_call(node)


def problems_of_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in PROCESSES:
        yield "starts a process"
    if name in BY_NAME:
        yield "imports by name"
    if name in FOREIGN_PAGES:
        yield "shows pages or files of others"
    if "pip" in [argument.value for argument in ast.walk(call) if isinstance(argument, ast.Constant)]:
        yield "runs pip"
    if name in ("eval", "exec", "compile"):
        yield f"calls {name}"
    if given.get("shell", "False") != "False":
        yield "runs a shell"
    if "preexec_fn" in given:
        yield "uses preexec_fn"
    # Without trust_remote_code=False, transformers asks in the terminal.
    if "custom_pipeline" in given or given.get("trust_remote_code", "False") != "False":
        yield "loads code of a model"
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "unpickles with torch.load"
    loads_weights = name.endswith(".from_pretrained") and not name.endswith(
        ("Processor.from_pretrained", "Tokenizer.from_pretrained")
    )
    if loads_weights and given.get("use_safetensors") != "True":
        yield "may load pickled weights"
    # Without use_kernels=False, transformers runs compiled kernels that it downloads from the Hub.
    if loads_weights and name.startswith(TRANSFORMERS_MODELS) and given.get("use_kernels") != "False":
        yield "downloads compiled kernels"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_source_does_nothing_dangerous(file: Path) -> None:
    allowed = ALLOWED.get(file.relative_to(ROOT).as_posix(), set())
    assert list(problems(file.read_text("utf-8"), allowed)) == []


def test_no_file_is_allowed_more_than_it_does() -> None:
    for name, allowed in ALLOWED.items():
        found = {problem.partition(": ")[2] for problem in problems((ROOT / name).read_text("utf-8"))}
        assert found == allowed, name


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
        "subprocess.run(['ls'])",
        "subprocess.run([sys.executable, '-m', 'pip', 'install', name])",
        "start_detached([sys.executable, '-m', 'pip', 'install', name], log, folder, {})",
        "importlib.import_module(name)",
        "import urllib.request",
        "from urllib import request",
        "from urllib.request import urlopen",
        "import requests",
        "from http.client import HTTPConnection",
        "def get():\n    import httpx",
        "gr.load('models/x')",
        "gr.FileExplorer()",
        "torch.load('x.pt')",
        "AutoModel.from_pretrained('x')",
        "AutoModel.from_pretrained('x', use_safetensors=True)",
        "AutoModel.from_pretrained('x', use_safetensors=True, trust_remote_code=True)",
        "AutoModel.from_pretrained('x', use_safetensors=True, trust_remote_code=trusted)",
        "DiffusionPipeline.from_pretrained('x', use_safetensors=True, custom_pipeline='y')",
    ],
)
def test_danger_is_found(source: str) -> None:
    assert list(problems(source))


@pytest.mark.parametrize(
    "source",
    [
        "def limit():\n    import resource",
        "torch.load('x.pt', weights_only=True)",
        "from urllib.parse import quote",
        "from starlette.requests import Request",
        "AutoModel.from_pretrained('x', use_safetensors=True, use_kernels=False)",
        "AutoencoderKL.from_pretrained('x', use_safetensors=True)",
        "CLIPTokenizer.from_pretrained('x')",
        "text = 'AutoModel.from_pretrained()'",
    ],
)
def test_what_is_safe_is_no_problem(source: str) -> None:
    assert not list(problems(source))
