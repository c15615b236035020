"""Train LoRAs, and act on runs that are training or have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from lora_studio.api.jobs import FOLDERS, build, execute_job, ignore, run_job
from lora_studio.device import device_to_plan_for, find_gpu
from lora_studio.errors import InputError, JobError
from lora_studio.event_recorder import Listener
from lora_studio.lora.file_settings import check_file_settings, file_overrides
from lora_studio.planning.plan import NEW_PROJECT, plan
from lora_studio.planning.planned_run import Plan
from lora_studio.planning.speeds import MeasuredSpeed, shortest_run, speed_of_run
from lora_studio.planning.variants import Axis, variant_jobs
from lora_studio.settings.choices import LoraKind
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.sample_prompts import read_sample_prompts
from lora_studio.settings.subsets import Subset
from lora_studio.training.continuation import continue_run
from lora_studio.worker import start_next
from lora_studio.workspace.job_folder import JobFolder, numbered_folder
from lora_studio.workspace.project import Home
from lora_studio.workspace.run_queue import RunQueue

if TYPE_CHECKING:
    from lora_studio.training.train import TrainResult

TRAIN = TrainJob.defaults()


def train(
    dataset: Path | str,
    *,
    base: str,
    name: str = TRAIN.name,
    trigger_word: str = TRAIN.trigger_word,
    recipe: Recipe | None = None,
    kind: LoraKind | str = NEW_PROJECT.kind,
    vae: str | None = TRAIN.vae,
    network_weights: Path | str | None = TRAIN.network_weights,
    regularization: Path | str | None = TRAIN.regularization,
    subsets: Sequence[Subset] = TRAIN.subsets,
    parent: Path | str | None = TRAIN.parent,
    num_processes: int = TRAIN.num_processes,
    out: Path | None = None,
    home: Home | None = None,
    on_event: Listener = ignore,
) -> TrainResult:
    """Train a LoRA on the images of `dataset` and return its path, its loss and a verdict.

    `base` is a name from the catalogue, a Hub repository, a diffusers folder or a .safetensors file; `vae` replaces its
    own. Without a `recipe` one is planned for a LoRA of this `kind` on these images and this machine. `network_weights`
    is a LoRA file to start from, `regularization` a folder of regularisation images of the class. `subsets` are folders
    with repeats and settings of their own, which are trained on instead of those found in `dataset`. `parent` is the
    folder of the run that this one is a change of, which `runs` compares it with. `out` is the run folder (default: a
    numbered one in the studio's home); `resume` continues a stopped run. With `num_processes` above 1 the run uses one
    worker process per GPU. Raises StudioError.
    """
    job = build(
        TrainJob,
        dataset=dataset,
        base=base,
        name=name,
        trigger_word=trigger_word,
        recipe=recipe,
        vae=vae,
        network_weights=network_weights,
        regularization=regularization,
        subsets=list(subsets),
        parent=parent,
        num_processes=num_processes,
    )
    if recipe is None:
        planned = plan_on_this_machine(job, LoraKind(kind), home or Home.locate())
        job = job.model_copy(update={"recipe": planned.recipe})
    return cast("TrainResult", run_job(job, out=out, home=home, on_event=on_event))


def queue_variants(
    dataset: Path | str,
    *,
    base: str,
    vary: Mapping[str, Sequence[Any]],
    name: str = TRAIN.name,
    trigger_word: str = TRAIN.trigger_word,
    recipe: Recipe | None = None,
    kind: LoraKind | str = NEW_PROJECT.kind,
    regularization: Path | str | None = TRAIN.regularization,
    subsets: Sequence[Subset] = TRAIN.subsets,
    out: Path | None = None,
    home: Home | None = None,
) -> list[Path]:
    """Put a run for each combination of values into the queue, and return their folders in its order.

    `vary` has one or two settings of the recipe, each with its values. The first run starts at once in a worker process
    if the GPU is free; the others follow, also after this process has ended. `out` is the folder for the runs (default:
    that of the studio's home); the other arguments are those of `train`. Raises StudioError.
    """
    job = build(
        TrainJob,
        dataset=dataset,
        base=base,
        name=name,
        trigger_word=trigger_word,
        recipe=recipe,
        regularization=regularization,
        subsets=list(subsets),
    )
    home = home or Home.locate()
    if recipe is None:
        job = job.model_copy(update={"recipe": plan_on_this_machine(job, LoraKind(kind), home).recipe})
    axes = [Axis(setting, list(values)) for setting, values in vary.items()]
    return enqueue_jobs(variant_jobs(job, axes), out=out, home=home)


def enqueue_jobs(jobs: Sequence[TrainJob], *, out: Path | None, home: Home) -> list[Path]:
    """Put new runs into the queue and return their folders; raise ConfigError if one contradicts its LoRA file."""
    for job in jobs:
        check_file_settings(job)
    parent = out or home.path / FOLDERS[TrainJob.kind]
    folders = [JobFolder.create(numbered_folder(parent, job.name), job.with_absolute_paths()) for job in jobs]
    for folder in folders:
        RunQueue(home).add(folder)
    start_next(home, wait=True)
    return [folder.path for folder in folders]


def plan_on_this_machine(job: TrainJob, kind: LoraKind, home: Home) -> Plan:
    """Plan a job for this machine's GPU; settings that its recipe was given are kept.

    Network type, dims and alphas are those of the LoRA file that the job starts from, if it has one.
    """
    gpu = find_gpu()
    return plan(
        job.dataset,
        kind=kind,
        base=job.base,
        vram_gib=gpu.vram_gib if gpu else None,
        trigger_word=job.trigger_word,
        overrides=file_overrides(job) | job.recipe.model_dump(include=job.recipe.model_fields_set),
        regularization=job.regularization,
        subsets=job.subsets,
        home=home,
        device=device_to_plan_for(),
        num_processes=job.num_processes,
    )


def measure(
    dataset: Path | str,
    *,
    base: str,
    recipe: Recipe,
    trigger_word: str = TRAIN.trigger_word,
    regularization: Path | str | None = TRAIN.regularization,
    subsets: Sequence[Subset] = TRAIN.subsets,
    home: Home | None = None,
    on_event: Listener = ignore,
) -> MeasuredSpeed:
    """Train a few steps on this machine, and return how long one takes and the peak of the memory.

    Both are remembered for plans for the same base and device; nothing else is kept. The arguments are those of
    `train`. Raises StudioError, also if it is stopped before it has taken enough steps.
    """
    home = home or Home.locate()
    home.path.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="measure-", dir=home.path) as folder:
        run = JobFolder(Path(folder) / "run")
        train(
            dataset,
            base=base,
            recipe=shortest_run(recipe),
            trigger_word=trigger_word,
            regularization=regularization,
            subsets=subsets,
            out=run.path,
            home=home,
            on_event=on_event,
        )
        speed = speed_of_run(run)
    if speed is None:
        raise JobError("The measurement was stopped too early.", "Let it run to its end.", code="stopped")
    return speed


def continue_training(
    folder: Path | str,
    *,
    more_epochs: int,
    out: Path | None = None,
    home: Home | None = None,
    on_event: Listener = ignore,
) -> TrainResult:
    """Train on from a finished or stopped run for `more_epochs` epochs, as a new run in `out`; return its result.

    The new run has the optimizer's state and the losses of the other one, which stays as it is. A learning rate that
    had fallen rises again to half the recipe's, and falls until the last step. `out` is by default a numbered folder
    beside the run. Raises InputError if the run is active or has no saved state.
    """
    source = JobFolder(Path(folder).resolve())
    job = source.job()
    target = out or numbered_folder(source.path.parent, job.name if isinstance(job, TrainJob) else "")
    try:
        continued = continue_run(source, target, more_epochs)
    except InputError:
        if out is None:
            target.rmdir()
        raise
    return cast("TrainResult", execute_job(continued, home or Home.locate(), on_event, resume=True))


def request_samples(folder: Path | str) -> None:
    """Ask the training that runs in `folder` to draw its sample prompts after the current step.

    Raises InputError if no training runs there, or if it has no sample prompts.
    """
    job_folder, job = _running_training(folder)
    if not read_sample_prompts(job.recipe):
        raise InputError(
            f"sample_prompts is empty in {folder}.", "Set it before you start a training.", code="no_sample_prompts"
        )
    job_folder.request_samples()


def request_save(folder: Path | str) -> None:
    """Ask the training that runs in `folder` to save its LoRA and its state after the current step.

    Raises InputError if no training runs there.
    """
    _running_training(folder)[0].request_save()


def _running_training(folder: Path | str) -> tuple[JobFolder, TrainJob]:
    """Return the training that runs in a folder; raise InputError if there is none."""
    job_folder = JobFolder(Path(folder))
    job = job_folder.job()
    if not isinstance(job, TrainJob) or not job_folder.status().state.is_active:
        raise InputError(f"No training runs in {folder}.", "Start or resume it first.", code="not_running")
    return job_folder, job
