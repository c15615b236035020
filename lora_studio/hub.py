"""Download models from the Hugging Face Hub, with errors that say what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lora_studio.errors import InputError

REPO_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"})


def is_repo_name(text: str) -> bool:
    """Return True if a text can be the name of a repository, like `SmilingWolf/wd-vit-tagger-v3`."""
    return REPO_NAME.fullmatch(text) is not None and ".." not in text and not text.endswith(".git")


def download(repo: str, patterns: Sequence[str]) -> Path:
    """Return the local folder with the files of a repository that match `patterns`; download what is not cached.

    Raises InputError if the repository does not exist, or if there is neither a network nor a cached copy.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=list(patterns)))
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{repo} is not a public repository on the Hub.",
            "Check the name; for a private or gated model accept its terms on its page and run `hf auth login`.",
            code="hub_missing",
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{repo} could not be downloaded: {reason.rstrip('.')}.",
            "Check the network, or download the model on another machine and give its folder.",
            code="hub_download",
        ) from error
