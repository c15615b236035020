"""Runs in a job of Hugging Face Jobs: download the inputs, then train with the wheel beside this script.

It is uploaded as `run.py` and started by `uv run`, with huggingface_hub as its only package; the token is in HF_TOKEN.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from huggingface_hub import snapshot_download


def main(repo: str, work: Path) -> int:
    """Train what is in the repository, and return the exit status of the training."""
    patterns = ["inputs/**", "*.whl"]
    source = Path(snapshot_download(repo, repo_type="dataset", allow_patterns=patterns, local_dir=work / "repo"))
    wheel = next(source.glob("*.whl"))
    command = ["uv", "run", "--no-project", "--with", str(wheel), "python", "-m", "lora_studio", "hf-job"]
    return subprocess.run([*command, str(source / "inputs"), repo, str(work / "run")], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path("lora-studio-job").resolve()))
