"""The base models that the dropdowns offer, and whether the chosen one is on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_studio.errors import InputError
from lora_studio.models.catalogue import KnownBase, find_base
from lora_studio.models.found import Model, catalogue_models, find_models
from lora_studio.models.locate import cached_base, resolve_base
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home


@dataclass(frozen=True)
class ChosenBase:
    """The base of a project. `download` is the job that downloads it; None for one that needs none or does not exist.

    `name` is that of the catalogue, or as given.
    """

    name: str
    known: KnownBase | None
    is_here: bool
    download: JobFolder | None

    @classmethod
    def load(cls, base: str, home: Home) -> ChosenBase:
        """Look whether a base is on this machine; no file is opened."""
        known = find_base(base)
        name = known.name if known else base.strip()
        try:
            source = resolve_base(base, home)
        except InputError:
            return cls(name, known, is_here=False, download=None)
        if source.kind != "repo":
            return cls(name, known, is_here=True, download=None)
        return cls(name, known, is_here=cached_base(source) is not None, download=home.download_of(name))

    @property
    def is_downloading(self) -> bool:
        """True while the base is being downloaded."""
        return self.download is not None and self.download.status().state.is_active

    @property
    def can_download(self) -> bool:
        """True if the base can be downloaded and is not on this machine."""
        return self.download is not None and not self.is_here and not self.is_downloading

    @property
    def signature(self) -> str:
        """A text that changes whenever the page must show something else about the download."""
        if self.download is None:
            return ""
        status = self.download.status()
        stopping = self.download.stop_requested()
        return "|".join(map(str, (self.name, self.is_here, status.state, status.message, status.done, stopping)))

    @property
    def is_partial(self) -> bool:
        """True if a part was downloaded before."""
        return self.download is not None and self.download.status().state in (JobState.STOPPED, JobState.FAILED)


def list_choices(home: Home, *, local: bool) -> list[Model]:
    """Return the base models to choose from; without `local`, the paths of this computer are left out."""
    return [*catalogue_models(home), *(find_models(home) if local else [])]


def base_choices(models: Sequence[Model]) -> list[tuple[str, str]]:
    """Return a dropdown's choices as (label, base): those on this machine first."""
    usable = sorted((model for model in models if not model.problem), key=lambda model: not model.place)
    return [(f"{model.name} ({model.location})", model.base) for model in usable]
