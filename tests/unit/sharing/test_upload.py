"""A release is uploaded as one commit, and refusals say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from lora_studio.errors import InputError, JobError
from lora_studio.sharing.upload import upload_release
from tests.support.hub_uploads import HubUploads

FILES = {"README.md": b"# ink\n", "ink.safetensors": b"weights" * 500, "images/1.png": b"picture"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubUploads]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with HubUploads().running() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / "ink" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ink" / name).write_bytes(content)
    return tmp_path / "ink"


def upload(hub: HubUploads, folder: Path, repo: str = "ann/ink", token: str = "hf_secret") -> str:
    return upload_release(folder, repo, private=True, token=token, endpoint=hub.url)


def test_all_files_arrive_in_a_private_repository(hub: HubUploads, folder: Path) -> None:
    assert upload(hub, folder) == f"{hub.url}/ann/ink"
    assert hub.repos == {"ann/ink": FILES}
    assert hub.private == {"ann/ink"}
    assert len(hub.messages) == 1


def test_a_second_release_is_a_second_commit(hub: HubUploads, folder: Path) -> None:
    upload(hub, folder)
    (folder / "README.md").write_bytes(b"# ink 2\n")
    upload(hub, folder)
    assert hub.repos["ann/ink"]["README.md"] == b"# ink 2\n"
    assert len(hub.messages) == 2


@pytest.mark.parametrize(
    ("repo", "token", "code"),
    [("ink", "hf_secret", "repo_name"), ("ben/ink", "hf_secret", "hub_refused"), ("ann/ink", "wrong", "hub_refused")],
)
def test_names_and_tokens_that_the_hub_refuses(hub: HubUploads, folder: Path, repo: str, token: str, code: str) -> None:
    with pytest.raises(InputError) as caught:
        upload(hub, folder, repo, token)
    assert caught.value.code == code
    assert token not in str(caught.value)


def test_without_a_token_nothing_is_sent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError) as caught:
        upload_release(folder, "ann/ink", endpoint="http://127.0.0.1:9")
    assert caught.value.code == "hub_token"


def test_a_failing_commit_and_a_missing_server_are_failures(hub: HubUploads, folder: Path) -> None:
    hub.refuse = 400
    with pytest.raises(JobError) as caught:
        upload(hub, folder)
    assert caught.value.code == "hub_upload"
    with pytest.raises(JobError):
        upload_release(folder, "ann/ink", token="hf_secret", endpoint="http://127.0.0.1:9")
