"""Download models from the Hugging Face Hub, with errors that say what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lora_studio.errors import InputError, StudioError
from lora_studio.hub_files import Transfer, download_large_files

REPO_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"})


def is_repo_name(text: str) -> bool:
    """Return True if a text can be the name of a repository, like `SmilingWolf/wd-vit-tagger-v3`."""
    return REPO_NAME.fullmatch(text) is not None and ".." not in text and not text.endswith(".git")


def download(
    repo: str,
    patterns: Sequence[str],
    *,
    report: Callable[[Transfer], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Return the local folder with the files of a repository that match `patterns`; download what is not cached.

    With `report`, which is called with the bytes so far, large files are resumed and their checksums compared. Raises
    StopRequested, InputError if the repository does not exist, if it is gated, or if there is neither a network nor a
    cached copy, DiskFullError, and JobError for a damaged file.
    """
    from huggingface_hub import constants, snapshot_download

    with hub_errors(repo):
        if report is not None and not constants.is_offline_mode():
            download_large_files(repo, patterns, report=report, should_stop=should_stop)
        return Path(snapshot_download(repo, allow_patterns=list(patterns)))


def cached_folder(repo: str) -> Path | None:
    """Return the folder of a repository's files in the Hub's cache, which may be incomplete; None if there is none."""
    return cached_files(repo, ["model_index.json"])


def cached_files(repo: str, patterns: Sequence[str]) -> Path | None:
    """Return the folder of a repository in the Hub's cache; None if it has none there.

    Nothing is downloaded; files that match `patterns` may be missing.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, local_files_only=True, allow_patterns=list(patterns)))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Raise InputError, with a remedy, for what huggingface_hub raises."""
    from httpx2 import TransportError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        yield
    except StudioError:
        raise
    except GatedRepoError as error:
        raise InputError(
            f"{repo} is gated: its authors ask you to accept their terms first.",
            f"Accept them at https://huggingface.co/{repo}, run `hf auth login`, then try again.",
            code="hub_gated",
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{repo} is not a public repository on the Hub.",
            "Check the name; for a private or gated model accept its terms on its page and run `hf auth login`.",
            code="hub_missing",
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, TransportError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{repo} could not be downloaded: {reason.rstrip('.')}.",
            "Check the network, then try again: what was downloaded is kept. Or download the model on another machine "
            "and give its folder.",
            code="hub_download",
        ) from error
