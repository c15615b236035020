"""The environment of worker processes: without the passwords, keys and tokens that their job does not need."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from lora_studio.hub import is_repo_name
from lora_studio.models.catalogue import find_base
from lora_studio.settings.choices import Tracker
from lora_studio.settings.job_specs import AnyJob, DownloadJob, SweepJob, TagJob, TrainJob

SECRET_NAME = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIALS|AUTH)S?$", re.IGNORECASE)
HUB_SECRETS = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})
TRACKER_SECRETS = {Tracker.WANDB: frozenset({"WANDB_API_KEY"}), Tracker.TRACKIO: HUB_SECRETS}
WITHHELD_VARIABLE = "LORA_STUDIO_WITHHELD"
"""In a worker's environment: the names of the variables that were removed, or ALL for the job of a visitor."""
ALL = "*"
UNTRUSTED = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", WITHHELD_VARIABLE: ALL}
"""Of a visitor's job: nothing is downloaded, and the token that `hf auth login` saved is not used."""


def secrets_of(job: AnyJob) -> frozenset[str]:
    """Return the names of the secret variables that a job may need: the Hub's for a download, those of its tracker."""
    match job:
        case TrainJob():
            needed = TRACKER_SECRETS.get(job.recipe.log_with, frozenset())
            models = [job.base, job.vae or ""]
        case SweepJob():
            needed, models = frozenset(), job.bases
        case TagJob() | DownloadJob():
            return HUB_SECRETS
    return needed | (HUB_SECRETS if any(map(_is_on_hub, models)) else frozenset())


def worker_environment(
    needed: Collection[str], *, trusted: bool = True, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment without the variables whose name is that of a secret, except the `needed` ones.

    Without `trusted` none is left, and the Hub cannot be used.
    """
    kept = needed if trusted else ()
    withheld = [name for name in environment if SECRET_NAME.search(name) and name not in kept]
    known = {name for name in environment.get(WITHHELD_VARIABLE, "").split(",") if name}
    passed = {name: value for name, value in environment.items() if name not in withheld}
    if not trusted:
        return passed | UNTRUSTED
    return passed | {WITHHELD_VARIABLE: ",".join(sorted(known | set(withheld)))}


def can_start(job: AnyJob, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a worker has the secrets that another job may need, or never had any."""
    withheld = set(environment.get(WITHHELD_VARIABLE, "").split(","))
    return ALL not in withheld and not withheld & secrets_of(job)


def _is_on_hub(model: str) -> bool:
    known = find_base(model)
    return not known.is_embedded if known else is_repo_name(model.strip()) and not Path(model.strip()).exists()
