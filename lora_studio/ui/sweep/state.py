"""What the Test tab shows: as the page has it when an event happens, and as it shall be next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from lora_studio import guide
from lora_studio.errors import StudioError
from lora_studio.lora.header import read_lora_header
from lora_studio.models.catalogue import find_base
from lora_studio.sampling.cells import Arrangement
from lora_studio.settings.job_specs import SweepJob, TrainJob
from lora_studio.settings.sample_prompts import AUTO_NEGATIVE, negative_prompt, read_sample_prompts
from lora_studio.settings.sections.samples import SampleSettings
from lora_studio.ui.context import EditedRun
from lora_studio.ui.state.lora_files import LoraChoice, lora_choices
from lora_studio.workspace.project import Project, ProjectInfo


@dataclass(frozen=True)
class SweepPage:
    """The page when an event happens.

    `run` is the run that Train shows. `sweep` and `cell` name the test and the enlarged image, empty for none, and
    `arrangement` is how the user arranged its grid, None for the arrangement that the test was made with. `pinned` is
    the image to compare others with, empty for strength 0. `loras`
    (ids), `bases` and `fields` (by the settings' names) are the content of the form; see `SweepForm.key` for
    `filled_for`; `filled_base` is the base whose recommended settings the form was filled with.
    """

    project: Project
    run: str | None
    sweep: str
    cell: str
    pinned: str
    arrangement: Arrangement | None
    signature: str
    filled_base: str
    filled_for: str
    loras: list[str]
    bases: list[str]
    stacked: list[str]
    weights: str
    fields: Mapping[str, object]

    @classmethod
    def empty(cls, project: Project, fields: Mapping[str, object]) -> SweepPage:
        """Return a page on which nothing is selected or opened, with the form's fields as they are."""
        return cls(project, None, "", "", "", None, "", "", "", [], [], [], "", fields)

    @property
    def shown(self) -> SweepState:
        """Return what the page shows besides the form."""
        sweep = self.sweep or default_sweep(self.project)
        return SweepState(self.project, sweep, self.cell, self.pinned, self.arrangement)


@dataclass(frozen=True)
class SweepForm:
    """New content of the form: selected LoRAs (ids), bases, and values of settings. `bases` of None stay as they are.

    `stacked` are the other LoRAs in every image (ids) with the text of their strengths; None leaves both.

    `key` changes when the form must be filled again, for another run and at the end of the run; None keeps it. `count`
    is the line below the form, see `cell_count`; None keeps it.
    """

    loras: Sequence[str]
    bases: Sequence[str] | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    key: str | None = None
    stacked: tuple[Sequence[str], str] | None = None
    count: Markup | None = None

    @classmethod
    def of_target(cls, project: Project, target: LoraChoice | None) -> SweepForm:
        """Return the content for a LoRA, with its run's base, sample prompts, negative prompt and trigger word."""
        info = project.info()
        job = target.run.job() if target and target.run else None
        run = job if isinstance(job, TrainJob) else None
        changed = {name: value for name, value in info.recipe.items() if name in SampleSettings.model_fields}
        settings = run.recipe if run else SampleSettings.parse({"sample_prompts": []} | changed)
        base = run.base if run else info.base
        has_own_trigger = target is not None and bool(read_lora_header(target.path).trigger_word)
        values = {
            **base_settings([base]),
            **_prompt_values(settings, base, info),
            "negative_prompt": negative_prompt(settings, base),
            "trigger_word": "" if has_own_trigger else info.trigger_word,
        }
        return cls([target.id] if target else [], [base], values, form_key(project, target), stacked=([], ""))

    @classmethod
    def of_job(cls, project: Project, job: SweepJob) -> SweepForm:
        """Return the content that repeats a test, with those of its LoRAs that still exist."""
        known = {choice.path: choice.id for choice in lora_choices(project).values()}
        ids = [known[path] for path in job.loras if path in known]
        others = [lora for lora in job.with_loras if lora.path in known]
        stacked = ([known[lora.path] for lora in others], ", ".join(lora.strengths for lora in others))
        return cls(ids, job.bases, dict(job), stacked=stacked)


@dataclass(frozen=True)
class SweepState:
    """What the tab shall show.

    `sweep`, `cell`, `pinned` and `arrangement` are as in `SweepPage`. `form` is the form's new content, None leaves it
    to the user; `wrong` are fields in which errors are marked. `is_job_started` starts the polling of jobs. `is_tick`
    leaves to the user what a click may change meanwhile. `edited` is what Train's form is opened with.
    """

    project: Project
    sweep: str
    cell: str = ""
    pinned: str = ""
    arrangement: Arrangement | None = None
    form: SweepForm | None = None
    wrong: Mapping[str, object] | None = None
    error: StudioError | None = None
    is_job_started: bool = False
    is_path_imported: bool = False
    is_tick: bool = False
    edited: EditedRun | None = None


def default_sweep(project: Project) -> str:
    """Return the name of the active or else the latest test; empty without any."""
    sweeps = project.sweeps()
    active = [folder.name for folder in sweeps if folder.status().state.is_active]
    return active[0] if active else sweeps[-1].name if sweeps else ""


def likely_target(project: Project, run: str | None) -> LoraChoice | None:
    """Return the LoRA that is most likely to be tested: that of the run shown in Train, else the latest."""
    choices = list(lora_choices(project).values())
    return next(
        (choice for choice in choices if run and choice.run and choice.run.name == run), next(iter(choices), None)
    )


def form_key(project: Project, target: LoraChoice | None) -> str:
    """Return the key of the form's content for a LoRA, see `SweepForm`."""
    if target is None or target.run is None:
        return project.name
    return f"{project.name}:{target.run.name}:{target.is_final}"


def page_signature(project: Project, sweep: str) -> str:
    """Return a text that changes whenever the page must be updated."""
    parts = [project.name, sweep]
    for folder in project.sweeps():
        status = folder.status()
        detail = f"{status.updated_at}:{folder.stop_requested()}" if folder.name == sweep else ""
        parts.append(f"{folder.name}:{status.state}:{detail}")
    return "|".join(parts)


def base_settings(bases: Sequence[str]) -> dict[str, object]:
    """Return what the model card of the first base recommends, as values of the form's settings.

    Quality tags and negative prompt are those of each base.
    """
    known = [base for base in map(find_base, bases) if base is not None]
    negatives = {base.negative_prompt for base in known}
    usual = SweepJob.defaults()
    values = {"sampler": usual.sampler, "steps": usual.steps, "guidance": usual.guidance, "clip_skip": usual.clip_skip}
    return {
        **values,
        **(known[0].recommended(usual.steps, usual.guidance) if known else {}),
        "negative_prompt": AUTO_NEGATIVE if len(negatives) > 1 else "".join(negatives),
        "quality_tags": any(base.prompt_prefix or base.prompt_suffix for base in known),
    }


def _prompt_values(settings: SampleSettings, base: str, info: ProjectInfo) -> dict[str, object]:
    """Return the sample prompts, else the guide's for the project's kind, and whether they have the quality tags."""
    known = find_base(base)
    texts = list(dict.fromkeys(prompt.text for prompt in read_sample_prompts(settings)))
    if not texts:
        return {"prompts": list(guide.KINDS[info.kind.value].prompts)}
    plain = [known.plain_prompt(text) if known else text for text in texts]
    return {"prompts": plain, "quality_tags": plain != texts}
