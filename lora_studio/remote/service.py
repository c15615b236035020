"""The calls to the Hub and to Hugging Face Jobs that a remote training makes, with errors that say what to do.

The token is that of `hf auth login` or HF_TOKEN. A job gets it as a secret of the service: it is in no argument, file,
event or log.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_studio.errors import InputError, JobError, StudioError
from lora_studio.settings.hf_jobs import HfJobsSettings
from lora_studio.workspace.job_environment import ALL, HUB_SECRETS, WITHHELD_VARIABLE

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobInfo

    from lora_studio.remote.inputs import Content

LABEL = "lora-studio-run"
# What the job runs, in Python: the script that was uploaded to the repository that is its argument.
START = (
    "import sys;from huggingface_hub import hf_hub_download as d;"
    "exec(compile(open(d(sys.argv[1],'run.py',repo_type='dataset')).read(),'run.py','exec'))"
)
BILLING = "Hugging Face Jobs need a Pro or team account with billing: https://huggingface.co/settings/billing."
MICRO_USD = 1e6
MINUTES_PER_HOUR = 60


@dataclass(frozen=True)
class Hardware:
    """A kind of machine of Hugging Face Jobs; `usd_per_hour` is None if the service bills by another unit."""

    flavor: str
    label: str
    usd_per_hour: float | None


@dataclass(frozen=True)
class JobsService:
    """The Hub and Hugging Face Jobs for one user, whose name is `namespace`."""

    api: HfApi
    namespace: str
    token: str = field(repr=False)

    @classmethod
    def connect(cls) -> JobsService:
        """Return the service for the token of this computer. Raises InputError without one, or if it is refused."""
        from huggingface_hub import HfApi, get_token

        if os.environ.get(WITHHELD_VARIABLE) == ALL:
            raise InputError(
                "Training on Hugging Face Jobs is paid by the account of this computer, which visitors cannot use.",
                "Train on this computer.",
                code="jobs_visitor",
            )
        if (token := get_token()) is None:
            raise InputError("There is no token for the Hub on this machine.", _token_remedy(), code="hub_token")
        api = HfApi(token=token)
        with jobs_errors("The sign-in"):
            account = api.whoami()
        role = account.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise InputError(
                f"The token of this computer has the role {role}: it cannot upload files or start jobs.",
                _token_remedy(),
                code="jobs_refused",
            )
        return cls(api, str(account["name"]), token)

    def hardware(self) -> list[Hardware]:
        """Return the machines of the service with their prices."""
        with jobs_errors("The list of hardware"):
            found = self.api.list_jobs_hardware()
        return [
            Hardware(
                item.name,
                " ".join([item.pretty_name, *([item.accelerator.vram] if item.accelerator else [])]),
                round(item.unit_cost_micro_usd / MICRO_USD * MINUTES_PER_HOUR, 2)
                if item.unit_label == "minute"
                else None,
            )
            for item in found
        ]

    def upload(self, repo: str, files: Mapping[str, Content]) -> None:
        """Upload files, by their path in it, to a private dataset repository of the user, which is created."""
        from huggingface_hub import CommitOperationAdd

        with jobs_errors(f"The creation of the private repository {repo}"):
            self.api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        with jobs_errors(f"The upload to {repo}"):
            operations = [CommitOperationAdd(path, content) for path, content in files.items()]
            self.api.create_commit(
                repo, operations, repo_type="dataset", commit_message="Upload the inputs of a training"
            )

    def start(self, repo: str, key: str, settings: HfJobsSettings) -> JobInfo:
        """Start the job that trains what is in the repository; it can be found by the label `key`."""
        import huggingface_hub

        with jobs_errors(f"The job on {settings.flavor}"):
            started: JobInfo = self.api.run_uv_job(
                "python",
                script_args=["-c", START, repo],
                dependencies=[f"huggingface_hub=={huggingface_hub.__version__}"],
                flavor=settings.flavor,
                timeout=settings.timeout_seconds,
                secrets={"HF_TOKEN": self.token},
                labels={LABEL: key, "name": "lora-studio"},
                namespace=self.namespace,
            )
            return started

    def find(self, key: str) -> JobInfo | None:
        """Return the job with a label, started by an app that ended before it could record it; None without one."""
        with jobs_errors("The list of jobs"):
            return next(iter(self.api.list_jobs(labels={LABEL: key}, namespace=self.namespace, token=self.token)), None)

    def inspect(self, job_id: str) -> JobInfo:
        """Return the state of a job."""
        with jobs_errors(f"The job {job_id}"):
            return self.api.inspect_job(job_id=job_id, namespace=self.namespace)

    def logs(self, job_id: str) -> Iterable[str]:
        """Yield the lines of a job's log from its beginning, until it ends or the connection breaks."""
        with jobs_errors(f"The log of the job {job_id}"):
            yield from self.api.fetch_job_logs(job_id=job_id, namespace=self.namespace, follow=True)

    def cancel(self, job_id: str) -> None:
        """Cancel a job."""
        with jobs_errors(f"Cancelling the job {job_id}"):
            self.api.cancel_job(job_id=job_id, namespace=self.namespace)

    def download(self, repo: str, path: str, folder: Path) -> Path | None:
        """Download a file of the repository below `folder` and return its path; None if there is no such file."""
        from huggingface_hub.errors import RemoteEntryNotFoundError

        with jobs_errors(f"The download of {path} from {repo}"):
            try:
                return Path(
                    self.api.hf_hub_download(repo, path, repo_type="dataset", local_dir=folder, force_download=True)
                )
            except RemoteEntryNotFoundError:
                return None

    def without_token(self, text: str) -> str:
        """Return a text with the token replaced, if a program of the job printed it."""
        return text.replace(self.token, "[HF_TOKEN]")


def _token_remedy() -> str:
    """Return where a token comes from; one in HF_TOKEN has precedence over that of `hf auth login`."""
    has_variable = any(os.environ.get(name) for name in HUB_SECRETS)
    use = "set HF_TOKEN to it" if has_variable else "run `hf auth login`"
    return f"Create one with write access at https://huggingface.co/settings/tokens, then {use}."


@contextmanager
def jobs_errors(what: str) -> Iterator[None]:
    """Raise InputError or JobError, with a remedy, for what huggingface_hub raises."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except StudioError:
        raise
    except HfHubHTTPError as error:
        raise _refusal(what, error) from error
    except (HTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:  # ValueError: of a download
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise JobError(
            f"{what} failed: {reason.rstrip('.')}.",
            "Check the network, then resume the run: a job that has started continues.",
            code="jobs_unreachable",
        ) from error


def _refusal(what: str, error: Any) -> StudioError:
    """Return the error for an answer of the service that is a refusal or a failure."""
    status = error.response.status_code if error.response is not None else None
    reason = f"status {status}" + (f": {error.server_message.rstrip('.')}" if error.server_message else "")
    if status == 401:
        return InputError(
            f"{what} was refused ({reason}): the token of this computer is not valid.",
            _token_remedy(),
            code="jobs_token",
        )
    if status == 402:
        return InputError(f"{what} was refused ({reason}).", BILLING, code="jobs_billing")
    if status == 403:
        return InputError(
            f"{what} was refused ({reason}): the token lacks a right.",
            f"Give the token write access and the right to start jobs. {BILLING}",
            code="jobs_refused",
        )
    if status in (400, 404, 422):
        return InputError(
            f"{what} was refused ({reason}).",
            "Check flavor and timeout, and that repository and job still exist on the Hub.",
            code="jobs_request",
        )
    return JobError(
        f"{what} failed ({reason}).",
        "Resume the run later: a job that has started continues.",
        code="jobs_unreachable",
    )
