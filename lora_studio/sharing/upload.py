"""Uploads a release to the Hub, into the repository of the user whose token this machine has."""

from __future__ import annotations

from pathlib import Path

from lora_studio.errors import InputError, JobError
from lora_studio.hub import is_repo_name
from lora_studio.workspace.tool_run import Progress, ToolRun, record_run


def upload_release(
    folder: Path, repo: str, *, private: bool = True, token: str | None = None, endpoint: str | None = None
) -> str:
    """Upload the files of a release folder as one commit and return the repository's address.

    The repository is created if it does not exist; in one that exists, earlier files stay in its history. `token`
    defaults to that of `hf auth login` or HF_TOKEN. Raises InputError without a token, for a name that is not
    USER/NAME, and if the Hub refuses; JobError if the connection fails.
    """
    from httpx2 import TransportError
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if not is_repo_name(repo):
        raise InputError(f"{repo!r} is not the name of a repository.", "Write USER/NAME.", code="repo_name")
    if token is None and get_token() is None:
        raise InputError(
            "There is no token for the Hub on this machine.",
            "Create one with write access at https://huggingface.co/settings/tokens, then run `hf auth login`.",
            code="hub_token",
        )
    api = HfApi(endpoint=endpoint, token=token)
    try:
        created = api.create_repo(repo, private=private, exist_ok=True, repo_type="model")
        api.upload_folder(repo_id=repo, repo_type="model", folder_path=folder, commit_message=f"Release {folder.name}")
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status not in (401, 403, 409):
            raise JobError(
                f"The Hub answered {status or 'nothing'} to the upload to {repo}.",
                "Try again later.",
                code="hub_upload",
            ) from error
        raise InputError(
            f"The Hub refuses the upload to {repo} (status {status}).",
            "Check that the name begins with your user or organisation, and that the token has write access.",
            code="hub_refused",
        ) from error
    except (TransportError, OfflineModeIsEnabled, OSError, RuntimeError) as error:  # RuntimeError: of a large file
        raise JobError(
            f"The upload to {repo} failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}.",
            "Check the network, then upload the release folder again: what arrived is not sent twice.",
            code="hub_upload",
        ) from error
    return str(created)


def run_upload(file: Path) -> bool:
    """Upload the release that a file made by `ToolRun.save` describes; return whether it succeeded."""

    def upload(run: ToolRun, on_progress: Progress) -> dict[str, str]:
        folder, repo = Path(run.arguments["folder"]), run.arguments["repo"]
        return {"url": upload_release(folder, repo, private=run.arguments["private"])}

    return record_run(file, upload)
