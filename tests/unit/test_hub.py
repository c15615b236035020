"""Names of Hub repositories, and errors of downloads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from lora_studio.errors import InputError
from lora_studio.hub import download, is_repo_name

NOT_FOUND: Any = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SmilingWolf/wd-vit-tagger-v3", True),
        ("a/b_c.1", True),
        ("sdxl", False),
        ("a/b/c", False),
        ("../models", False),
        ("a/..", False),
        ("a/b..c", False),
        ("a/b.git", False),
        ("-a/b", False),
        ("a/" + 97 * "b", False),
        ("a/b\n", False),
    ],
)
def test_a_repository_name_has_an_owner_and_a_name(text: str, expected: bool) -> None:
    assert is_repo_name(text) is expected


def test_a_download_asks_for_the_files_that_match_the_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot_download(repo: str, *, allow_patterns: list[str]) -> str:
        asked.append((repo, allow_patterns))
        return "folder"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert download("a/b", ("*.json", "*.safetensors")) == Path("folder")
    assert asked == [("a/b", ["*.json", "*.safetensors"])]


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (RepositoryNotFoundError("404", response=NOT_FOUND), "hub_missing", "a/b"),
        (LocalEntryNotFoundError("Cannot find the files.\nTry again."), "hub_download", "Cannot find the files"),
        (OSError(), "hub_download", "OSError"),
        (ConnectionError("Network is unreachable"), "hub_download", "Network is unreachable"),
    ],
)
def test_a_failed_download_is_an_input_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: str, reason: str
) -> None:
    def snapshot_download(repo: str, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(InputError) as caught:
        download("a/b", ["*"])
    assert caught.value.code == code
    assert reason in caught.value.message
    assert len(caught.value.message.splitlines()) == 1
    assert caught.value.remedy
