"""The test of all checkpoints of a run: a column per epoch, a row per prompt."""

from __future__ import annotations

from pathlib import Path

from lora_studio import guide
from lora_studio.errors import InputError
from lora_studio.models.catalogue import find_base
from lora_studio.settings.choices import SweepAxis
from lora_studio.settings.job_specs import SweepJob, TrainJob
from lora_studio.settings.sample_prompts import negative_prompt, read_sample_prompts
from lora_studio.ui.state.lora_files import lora_choices
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Project

MAX_CHECKPOINTS = 20  # the LoRAs that a test may have


def overview_job(project: Project, run: JobFolder) -> SweepJob:
    """Return the job that draws the run's sample prompts, else the guide's, with each of its checkpoints at strength 1.

    Of more than 20 checkpoints, 20 at even distances are taken, the first and the last among them. Raises InputError
    for a run without checkpoints.
    """
    job = run.job()
    choices = [choice for choice in lora_choices(project).values() if choice.run and choice.run.name == run.name]
    by_age = sorted((choice.path for choice in choices if choice.is_numbered), key=lambda path: path.stat().st_mtime)
    if not isinstance(job, TrainJob) or not by_age:
        raise InputError(f"Run {run.name} has no checkpoints.", "Wait for the end of an epoch.", code="no_checkpoints")
    recipe = job.recipe
    known = find_base(job.base)
    kind = project.info().kind.value
    guides = [known.prompt(text) if known else text for text in guide.KINDS[kind].prompts]
    return SweepJob.parse(
        {
            "loras": _evenly(by_age, MAX_CHECKPOINTS),
            "bases": [job.base],
            "prompts": list(dict.fromkeys(prompt.text for prompt in read_sample_prompts(recipe))) or guides,
            "trigger_word": job.trigger_word,
            "strengths": [1.0],
            "negative_prompt": negative_prompt(recipe, job.base),
            "seed": recipe.seed if recipe.sample_seed is None else recipe.sample_seed,
            "sampler": recipe.sample_sampler,
            "steps": recipe.sample_steps,
            "guidance": recipe.sample_guidance,
            "width": recipe.sample_width,
            "height": recipe.sample_height,
            "clip_skip": recipe.clip_skip,
            "columns": SweepAxis.LORA,
        }
    )


def _evenly(items: list[Path], count: int) -> list[Path]:
    """Return `count` of the items at even distances with the first and the last; all if there are no more."""
    if len(items) <= count:
        return items
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]
