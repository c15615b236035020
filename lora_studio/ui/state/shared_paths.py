"""Outside local mode, no path of this computer comes from a browser: only what is in the home, and names of models.

Neither does the name of a module to import, except those of the libraries that have optimizers and schedulers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lora_studio.dataset.tagging.catalogue import CATALOGUE
from lora_studio.errors import InputError
from lora_studio.hub import is_repo_name
from lora_studio.models.catalogue import find_base
from lora_studio.settings.job_specs import AnyJob, DownloadJob, SweepJob, TagJob, TrainJob
from lora_studio.workspace.project import Home

# Third-party libraries of optimizers and schedulers; importing them runs no other code than training with them does.
CLASS_LIBRARIES = frozenset(
    {"bitsandbytes", "dadaptation", "lion_pytorch", "prodigyopt", "prodigyplus", "pytorch_optimizer", "schedulefree"}
)
REMEDY = "Paths of this computer can be used only when the studio is not shared."


def check_shared_model(text: str, home: Home) -> None:
    """Raise InputError unless a base or a VAE is one of the catalogue's, on the Hub, or in the home's models folder."""
    given = text.strip()
    known = find_base(given) is not None
    on_hub = is_repo_name(given) and not Path(given).exists()
    in_models = given == Path(given).name and (home.models / given).exists()
    if given and not (known or on_hub or in_models):
        message = f"{given!r} is neither in the list, nor a Hub repository, nor in the models folder."
        raise InputError(message, REMEDY, code="local_path")


def check_shared_job(job: AnyJob, home: Home) -> None:
    """Raise InputError if a job reads a file outside the home."""
    root = home.path.resolve()
    for path in _paths(job):
        if not path.expanduser().resolve().is_relative_to(root):
            raise InputError(f"{path.name!r} is outside the studio's home.", REMEDY, code="local_path")
    match job:
        case TrainJob():
            models = [job.base, job.vae or ""]
            _check_class("optimizer_type", job.recipe.optimizer_type)
            _check_class("lr_scheduler_type", job.recipe.lr_scheduler_type)
        case SweepJob():
            models = job.bases
            _check_repo("feature_model", job.feature_model)
        case DownloadJob():
            models = [job.base]
        case TagJob():
            models = []
            for tagger in (job.tagger, *job.also):
                if tagger not in CATALOGUE:
                    _check_repo("tagger", tagger)
    for model in models:
        check_shared_model(model, home)


def _check_repo(name: str, value: str) -> None:
    """Raise InputError unless a model is empty or a repository on the Hub."""
    if value and (not is_repo_name(value) or Path(value).exists()):
        raise InputError(f"{name} is {value!r}, expected a Hub repository.", REMEDY, code="local_path")


def _check_class(name: str, value: str) -> None:
    """Raise InputError for a class of another module than torch.optim and the libraries of optimizers."""
    module = value.rpartition(".")[0]
    if module and not f"{module}.".startswith("torch.optim.") and module.split(".")[0] not in CLASS_LIBRARIES:
        raise InputError(
            f"{name} is {value!r}, whose module is not imported by a studio that is shared.",
            f"Use a class of torch.optim or of {', '.join(sorted(CLASS_LIBRARIES))}.",
            code="shared_class",
        )


def _paths(value: Any) -> Iterator[Path]:
    """Yield the paths in a model, its lists and its models."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _paths(getattr(value, name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _paths(item)
    elif isinstance(value, dict):
        yield from _paths(list(value.values()))
