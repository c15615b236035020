"""Test first: what the bare base draws for the plan's sample prompts, with and without the trigger word."""

from __future__ import annotations

from lora_studio.errors import InputError
from lora_studio.settings.job_specs import SweepJob
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.sample_prompts import fill_trigger, negative_prompt, read_sample_prompts
from lora_studio.ui.state.jobs import Jobs
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Project, ProjectInfo


def start_first_test(jobs: Jobs, project: Project, recipe: Recipe) -> JobFolder:
    """Start drawing on the bare base with the seed and the settings of the run's samples.

    Raises InputError if there are no sample prompts, or if one is already being drawn.
    """
    if any(folder.status().state.is_active for folder in project.first_tests()):
        raise InputError("The base is already being tested.", "Wait for it, or stop it.", code="busy")
    return jobs.start(project.new_first_test_dir(), first_test_job(project.info(), recipe))


def first_test_job(info: ProjectInfo, recipe: Recipe) -> SweepJob:
    """Return the job: each prompt with the trigger word, then without, unless it does not have the word."""
    texts = [prompt.text for prompt in read_sample_prompts(recipe)]
    if not texts:
        raise InputError("The plan has no sample prompts.", "Write some in Train, under Samples.", code="no_prompts")
    prompts = []
    for text in texts:
        prompts += [fill_trigger(text, info.trigger_word), fill_trigger(text, "")]
    return SweepJob.parse(
        {
            "bases": [info.base],
            "prompts": list(dict.fromkeys(prompts)),
            "trigger_word": info.trigger_word,
            "strengths": [0.0],
            "negative_prompt": negative_prompt(recipe, info.base),
            "seed": recipe.seed if recipe.sample_seed is None else recipe.sample_seed,
            "sampler": recipe.sample_sampler,
            "steps": recipe.sample_steps,
            "guidance": recipe.sample_guidance,
            "width": recipe.sample_width,
            "height": recipe.sample_height,
            "clip_skip": recipe.clip_skip,
            "mixed_precision": recipe.mixed_precision,
        }
    )
