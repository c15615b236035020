"""The studio's stages as Python functions; the command line and the tabs call the same ones.

`scan`, `curate`, `plan` and the functions that edit captions return directly. `tag`, `train` and `sweep` run in this
process, in a job folder like those that the browser starts, and wait until the GPU is free.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lora_studio.dataset.captions.edit_history import CaptionHistory, EditReport
from lora_studio.dataset.captions.edits import Edit, EditPlan, plan_edit
from lora_studio.dataset.captions.extension import set_caption_extension as change_extension
from lora_studio.dataset.captions.lint import Finding, lint
from lora_studio.dataset.captions.statistics import CaptionStatistics, caption_statistics
from lora_studio.dataset.curate import curate
from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.images.sets import wrap_images
from lora_studio.dataset.review import Review, mark_reviewed, review_status
from lora_studio.dataset.scan import scan
from lora_studio.dataset.training_images import check_caption_extension, read_images
from lora_studio.device import device_to_plan_for, find_gpu
from lora_studio.diagnosis import doctor
from lora_studio.errors import ConfigError, InputError, JobError
from lora_studio.event_recorder import Listener
from lora_studio.events import Event, FailedEvent, StepEvent, StoppedEvent
from lora_studio.interop.files import import_settings
from lora_studio.interop.write import export_settings
from lora_studio.ledger.compare import Comparison, compare
from lora_studio.ledger.records import find_records, read_records
from lora_studio.ledger.table import to_frame
from lora_studio.lora.file_settings import check_file_settings, file_overrides
from lora_studio.models.found import Model, catalogue_models, find_models
from lora_studio.planning.automatic_stop import AutomaticStop
from lora_studio.planning.plan import NEW_PROJECT, plan
from lora_studio.planning.planned_run import Plan
from lora_studio.planning.speeds import MeasuredSpeed, shortest_run, speed_of_run
from lora_studio.planning.variants import Axis, variant_jobs
from lora_studio.settings.choices import ExistingCaptions, LoraKind, Precision, Sampler, SweepAxis
from lora_studio.settings.job_specs import AnyJob, DownloadJob, StackedLora, SweepJob, TagJob, TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.sample_prompts import read_sample_prompts
from lora_studio.settings.subsets import Subset
from lora_studio.sharing.folder import ReleaseResult, build_release
from lora_studio.sharing.options import License, ReleaseOptions
from lora_studio.sharing.upload import upload_release
from lora_studio.training.continuation import continue_run
from lora_studio.worker import execute, start, start_next
from lora_studio.workspace.job_folder import JobFolder, JobState, numbered_folder
from lora_studio.workspace.job_paths import missing_paths, move_path
from lora_studio.workspace.project import Home, Project, records_folder
from lora_studio.workspace.run_queue import RunQueue

if TYPE_CHECKING:
    import pandas as pd

    from lora_studio.dataset.tagging.stage import TagResult
    from lora_studio.models.download import DownloadResult
    from lora_studio.sampling.sweep import SweepResult
    from lora_studio.training.train import TrainResult

POLL_SECONDS = 0.3
FOLDERS = {TagJob.kind: "tags", TrainJob.kind: "runs", SweepJob.kind: "sweeps"}  # in the studio's home
TAG, TRAIN, SWEEP = TagJob.defaults(), TrainJob.defaults(), SweepJob.defaults()
J = TypeVar("J", TagJob, TrainJob, SweepJob, DownloadJob)

__all__ = [
    "compare_runs",
    "continue_training",
    "curate",
    "doctor",
    "download_model",
    "edit_captions",
    "export_settings",
    "import_settings",
    "lint_captions",
    "list_models",
    "plan",
    "plan_caption_edit",
    "queue_variants",
    "release",
    "request_samples",
    "request_save",
    "resume",
    "review_captions",
    "runs",
    "scan",
    "set_caption_extension",
    "summarize_captions",
    "sweep",
    "tag",
    "train",
    "undo_caption_edit",
    "upload_release",
    "wrap_images",
]


def _ignore(event: Event) -> None:
    pass


def tag(
    dataset: Path | str,
    *,
    tagger: str | Sequence[str],
    threshold: float = TAG.threshold,
    character_threshold: float = TAG.character_threshold,
    trigger_word: str = TAG.trigger_word,
    existing: ExistingCaptions | str = TAG.existing,
    exclude_tags: Sequence[str] = TAG.exclude_tags,
    only_tags: Sequence[str] = TAG.only_tags,
    out: Path | None = None,
    home: Home | None = None,
    on_event: Listener = _ignore,
) -> TagResult:
    """Write captions for the images of `dataset`.

    `tagger` is wd14, blip, demo, a Hub repository or a folder, or a list of them, whose tags are combined. `threshold`
    (0 to 1) is the minimum confidence of a tag, `character_threshold` that of a character's name. `existing` decides
    what happens to existing captions; `exclude_tags` are whole tags to leave out, `only_tags` the only ones to write.
    `out` is the job folder (default: a numbered one in the studio's home). Raises StudioError.
    """
    job = _build(
        TagJob,
        dataset=dataset,
        tagger=tagger,
        threshold=threshold,
        character_threshold=character_threshold,
        trigger_word=trigger_word,
        existing=existing,
        exclude_tags=exclude_tags,
        only_tags=only_tags,
    )
    return cast("TagResult", run_job(job, out=out, home=home, on_event=on_event))


def lint_captions(dataset: Path | str, *, trigger_word: str | None = None) -> list[Finding]:
    """Return the problems of the captions of `dataset`, each with the edits that fix it.

    `trigger_word` is, by default, that of the project that the dataset belongs to. Raises InputError.
    """
    folder = Path(dataset)
    return lint(_images(folder), trigger_word_of(folder) if trigger_word is None else trigger_word)


def summarize_captions(dataset: Path | str, *, tag: str = "") -> CaptionStatistics:
    """Return tag counts, the tags that occur with `tag`, caption lengths and a suggested validation split.

    `tag` is, by default, the project's trigger word, else the most frequent tag. Raises InputError.
    """
    folder = Path(dataset)
    images = _images(folder)
    split = read_images(folder).suggest_split(seed=Recipe().seed)
    return caption_statistics(images, tag=tag or trigger_word_of(folder), split=split)


def plan_caption_edit(dataset: Path | str, edit: Edit) -> EditPlan:
    """Return what an edit (see `lora_studio.dataset.captions.edits`) would change in the captions of `dataset`."""
    return plan_edit(_images(Path(dataset)), edit)


def edit_captions(dataset: Path | str, edit: Edit) -> EditReport:
    """Apply an edit to all captions of `dataset`; the last 50 can be undone. Raises InputError or DiskFullError."""
    return CaptionHistory.of(Path(dataset)).apply(plan_caption_edit(dataset, edit))


def undo_caption_edit(dataset: Path | str) -> EditReport:
    """Undo the most recent edit of the captions of `dataset`, which may be a tagging; raise InputError without one."""
    return CaptionHistory.of(Path(dataset)).undo()


def set_caption_extension(dataset: Path | str, extension: str) -> None:
    """Read and write the caption files with this extension, like .txt2, in `dataset`; "" is .txt, else .caption.

    No caption file is changed. Raises ConfigError if it is not an extension, InputError if it is an image's or if the
    folder does not exist.
    """
    check_caption_extension(extension)
    change_extension(Path(dataset), extension)


def review_captions(
    dataset: Path | str, *, mark: Sequence[Path | str] = (), unmark: Sequence[Path | str] = ()
) -> Review:
    """Mark the images in `mark` as reviewed and those in `unmark` as not, and return which captions are reviewed.

    Raises InputError for an image that is not in the dataset.
    """
    folder = Path(dataset)
    for images, reviewed in ((mark, True), (unmark, False)):
        if images:
            mark_reviewed(folder, [Path(image) for image in images], reviewed=reviewed)
    return review_status(folder)


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
    on_event: Listener = _ignore,
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
    job = _build(
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
    job = _build(
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
    on_event: Listener = _ignore,
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


def sweep(
    loras: Sequence[Path | str] = (),
    *,
    bases: Sequence[str],
    prompts: Sequence[str],
    trigger_word: str = SWEEP.trigger_word,
    strengths: Sequence[float] | str = SWEEP.strengths,
    text_encoder_strength: float | None = SWEEP.text_encoder_strength,
    with_loras: Sequence[StackedLora | str] = SWEEP.with_loras,
    negative_prompt: str = SWEEP.negative_prompt,
    quality_tags: bool = SWEEP.quality_tags,
    seeds: Sequence[int] | str = SWEEP.seeds,
    seed: int | None = None,
    sampler: Sampler | str = SWEEP.sampler,
    steps: int = SWEEP.steps,
    guidance: float = SWEEP.guidance,
    width: int | None = SWEEP.width,
    height: int | None = SWEEP.height,
    clip_skip: int = SWEEP.clip_skip,
    mixed_precision: Precision | str = SWEEP.mixed_precision,
    feature_model: str = SWEEP.feature_model,
    rows: SweepAxis | str | None = SWEEP.rows,
    columns: SweepAxis | str | None = SWEEP.columns,
    out: Path | None = None,
    home: Home | None = None,
    on_event: Listener = _ignore,
) -> SweepResult:
    """Generate an image per LoRA, strength, prompt, seed and base, and combine them in one grid.

    Without LoRAs, the bases alone are drawn.

    `{trigger}` in a prompt is replaced by `trigger_word`, by default that of each LoRA. `strengths` and `seeds` can
    also be texts such as "0,0.8,1" or "0:1.4:0.2"; `text_encoder_strength` replaces a strength in the text encoders.
    `with_loras` are LoRAs that all images have besides, as texts like "b.safetensors:0.6". `seed` is one seed instead
    of `seeds`. `rows` and `columns` are two of the axes prompt, strength, seed, lora and base; the others are sections
    of the grid. A cell that another sweep in the same parent folder has is copied, not drawn. `width` and `height` are
    in pixels (default: the base's native resolution), `guidance` is the CFG scale. With `quality_tags` each base's own
    are added to the prompts; a negative prompt of "auto" is what its model card recommends. `feature_model` compares
    the images (docs/measures.md). `out` is the sweep's folder (default: a numbered one in the studio's home). Raises
    StudioError.
    """
    job = _build(
        SweepJob,
        loras=loras,
        bases=bases,
        prompts=prompts,
        trigger_word=trigger_word,
        strengths=strengths,
        text_encoder_strength=text_encoder_strength,
        with_loras=list(with_loras),
        negative_prompt=negative_prompt,
        quality_tags=quality_tags,
        sampler=sampler,
        seeds=seeds if seed is None else [seed],
        steps=steps,
        guidance=guidance,
        width=width,
        height=height,
        clip_skip=clip_skip,
        mixed_precision=mixed_precision,
        feature_model=feature_model,
        rows=rows,
        columns=columns,
    )
    return cast("SweepResult", run_job(job, out=out, home=home, on_event=on_event))


def list_models(*, home: Home | None = None) -> list[Model]:
    """Return the base models: those of the catalogue, then those found on this machine, also ones that cannot be used.

    The folders of AUTOMATIC1111, Forge, ComfyUI and kohya_ss in the user's home, those in LORA_STUDIO_MODEL_DIRS and in
    the home's model-folders.txt, and the Hub's cache are looked through.
    """
    home = home or Home.locate()
    return [*catalogue_models(home), *find_models(home)]


def download_model(base: str, *, home: Home | None = None, on_event: Listener = _ignore) -> DownloadResult:
    """Download a base model by its name in the catalogue or its Hub repository, unless it is on this machine.

    What a stopped or broken download received is kept, and continued. Raises StudioError.
    """
    home = home or Home.locate()
    folder = home.download_of(base)
    job = _build(DownloadJob, base=base)
    if not folder.exists:
        return cast("DownloadResult", _execute(JobFolder.create(folder.path, job), home, on_event))
    return cast("DownloadResult", resume(folder.path, home=home, on_event=on_event))


def resume(
    folder: Path | str,
    *,
    moved: Mapping[str, Path | str] | None = None,
    home: Home | None = None,
    on_event: Listener = _ignore,
) -> Any:
    """Continue a stopped or failed job from its last saved state; return the result of its kind.

    `moved` has the new places of files and folders that do not exist any more, by setting: dataset, base and so on.
    They are remembered for all runs of the project. Raises InputError if `folder` does not contain a job, if the job is
    running, or if one of its files or folders does not exist.
    """
    job_folder = JobFolder(Path(folder))
    _find_moved(job_folder, moved or {})
    if job_folder.status().state.is_active:
        raise InputError(f"The job in {folder} is already running.", "Wait for it, or stop it first.", code="busy")
    job_folder.clear_stop()
    return _execute(job_folder, home or Home.locate(), on_event, resume=True)


def continue_training(
    folder: Path | str,
    *,
    more_epochs: int,
    out: Path | None = None,
    home: Home | None = None,
    on_event: Listener = _ignore,
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
    return cast("TrainResult", _execute(continued, home or Home.locate(), on_event, resume=True))


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


def runs(folder: Path | str | None = None, *, everything: bool = False, home: Home | None = None) -> pd.DataFrame:
    """Return the training runs of a project, or of a folder of runs, as a table with one row per run.

    Columns: project, run, parent and the differences to it, hashes of base, images and captions, steps, fixed-noise
    loss, verdict, stars, notes, time and others. `validation_change`, the loss relative to the base's, compares runs.
    Without a folder: of the project that the working directory is in, else of all projects of the home, as with
    `everything`. Raises InputError if the folder has none.
    """
    return to_frame(find_records(Path(folder) if folder is not None else None, everything=everything, home=home))


def compare_runs(*folders: Path | str) -> Comparison:
    """Compare two or more runs: the settings that differ, and their fixed-noise losses; raises InputError."""
    jobs = [JobFolder(Path(folder)) for folder in folders]
    for job in jobs:
        job.job()
    return compare([record for job in jobs for record in read_records([job], "")])


def release(
    run: Path | str,
    *,
    name: str = "",
    strength: float | None = None,
    description: str = "",
    license: License | str | None = None,
    license_name: str = "",
    license_link: str = "",
    preview: Path | str | None = None,
    strip_tags: bool = False,
    adult: bool = False,
    out: Path | str | None = None,
) -> ReleaseResult:
    """Write a folder to share, and a zip of it: LoRA, previews, grid, model card, A1111 sidecar, text for Civitai.

    `run` is a run's folder, of which the best checkpoint is taken, or a LoRA file. `strength` is the one to recommend
    (default: 1), `license` the Hub's identifier (default: the base's), `preview` a picture. `strip_tags` leaves tags,
    folder names and dates out of the file. `out` is where the new folder is made (default: `release` in the run).
    Raises StudioError.
    """
    given = {
        "name": name,
        "strength": strength,
        "description": description,
        "license": license,
        "license_name": license_name,
        "license_link": license_link,
        "preview": preview,
        "strip_tags": strip_tags,
        "adult": adult,
    }
    return build_release(Path(run), ReleaseOptions.parse(given), out=None if out is None else Path(out))


def run_job(job: AnyJob, *, out: Path | None = None, home: Home | None = None, on_event: Listener = _ignore) -> Any:
    """Run a job in this process; return the result of its kind.

    `out` is the job folder (default: a numbered one in the studio's home). Raises StudioError.
    """
    home = home or Home.locate()
    if out is None:
        out = numbered_folder(home.path / FOLDERS[job.kind], job.name if isinstance(job, TrainJob) else "")
    return _execute(JobFolder.create(out, job.with_absolute_paths()), home, on_event)


def _find_moved(folder: JobFolder, moved: Mapping[str, Path | str]) -> None:
    """Record where missing files of a training are now; raise InputError for those that are still missing."""
    job = folder.job()
    missing = missing_paths(job) if isinstance(job, TrainJob) else {}
    for setting, place in moved.items():
        if setting in missing:
            move_path(folder.path, missing.pop(setting), Path(place))
    for setting, path in missing.items():
        option = f"--{setting.replace('_', '-')}"
        raise InputError(
            f"{setting} {path} does not exist.",
            f"If it has moved, give its new place: train --resume --out {folder.path} {option} NEW.",
            code="moved",
        )


def _build(kind: type[J], **values: Any) -> J:
    """Build a job from arguments; None leaves the model's default."""
    return kind.parse({name: value for name, value in values.items() if value is not None})


def _execute(folder: JobFolder, home: Home, on_event: Listener, *, resume: bool = False) -> Any:
    job = folder.job()
    if isinstance(job, TrainJob) and job.num_processes > 1:
        return _run_in_processes(folder, home, on_event, resume=resume)
    return execute(folder, home=home, resume=resume, listen=on_event)


def _run_in_processes(folder: JobFolder, home: Home, on_event: Listener, *, resume: bool) -> TrainResult:
    """Run a training job in several worker processes and pass on its events as they are written; SIGINT stops it."""
    from lora_studio.training.train import TrainResult

    started = time.time()
    inode, offset = 0, 0
    failed: FailedEvent | None = None
    step: StepEvent | None = None
    stopped: StoppedEvent | None = None
    start(folder, home, resume=resume)
    while True:
        try:
            alive = folder.status().state.is_active
            if folder.events_file.exists() and (current := folder.events_file.stat().st_ino) != inode:
                inode, offset = current, 0  # a resume replaces events.jsonl
            events, offset = folder.events(offset)
            for event in events:
                if event.time >= started - 1:
                    failed = event if isinstance(event, FailedEvent) else failed
                    step = event if isinstance(event, StepEvent) else step
                    stopped = event if isinstance(event, StoppedEvent) else stopped
                    on_event(event)
            if not alive:
                break
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            if folder.stop_requested():
                raise
            folder.request_stop()
    status = folder.status()
    if status.state is JobState.FAILED:
        code = failed.code if failed else "error"
        if code == "config":
            raise ConfigError(status.message.splitlines(), status.remedy)
        raise JobError(status.message, status.remedy, code=code)
    if (result := folder.result()) is not None:
        return TrainResult.model_validate(result)
    automatic = None
    if stopped is not None and stopped.code:
        automatic = AutomaticStop.model_validate(
            {"code": stopped.code, "step": status.done, "message": stopped.message}
        )
    return TrainResult(
        run=folder.path,
        lora=folder.path / stopped.path if stopped is not None and stopped.path else None,
        automatic_stop=automatic,
        steps=status.done,
        epochs=step.epoch if step else 0,
        final_loss=step.loss if step else None,
        seconds=round(time.time() - started, 3),
        stopped=True,
    )


def _images(folder: Path) -> list[Path]:
    images = find_images(folder)
    if not images:
        raise InputError(f"There are no images in {str(folder)!r}.", "Give a folder with images.", code="no_images")
    return images


def trigger_word_of(dataset: Path | str) -> str:
    """Return the trigger word of the project that a dataset folder belongs to; empty for any other folder."""
    project = Project(records_folder(Path(dataset)))
    return project.info().trigger_word if (project.path / "project.json").is_file() else ""
