"""Train a LoRA: check the job, build the trainer, and run the training loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from lora_studio.errors import StopRequested
from lora_studio.events import CaptionsEvent, Report, SavedEvent
from lora_studio.files import write_json
from lora_studio.planning.automatic_stop import AutomaticStop
from lora_studio.planning.steps import with_global_batch
from lora_studio.planning.verdicts import Verdict, judge, worst_verdict
from lora_studio.settings.job_specs import TrainJob
from lora_studio.training.build import build_trainer, fit_gpu_memory, with_cuda_graphs
from lora_studio.training.distributed import RankGroup, destroy_rank_group, init_rank_group
from lora_studio.training.loop import LoopEnd, train_loop
from lora_studio.training.lora_file import result_of_stop, save_lora_file
from lora_studio.training.preflight import PreflightResult, preflight
from lora_studio.training.progress import Progress
from lora_studio.training.reporting.loss_by_timestep import TimestepLosses
from lora_studio.training.reporting.run_records import CAPTIONS_FILE, write_run_records
from lora_studio.training.reporting.startup import (
    PhaseReporter,
    describe_environment,
    device_name,
    report_dataset,
    report_dora_axis,
    report_recipe_hints,
    report_start,
)
from lora_studio.training.reporting.trackers import tracked
from lora_studio.training.resume import resume_run
from lora_studio.training.speed.gpu_fallbacks import failures_of, known_failures, plain_recipe
from lora_studio.training.trainer import PRECISIONS, Trainer
from lora_studio.training.validation import loss_record, sample_verdicts
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home


class TrainResult(BaseModel):
    """The result of a training run. `lora` is the final file, or None if the run was stopped before its end.

    A run that stopped by itself has `automatic_stop`; its `lora` is the checkpoint that is its result, if there is one.
    `worst_verdict` is the worst serious verdict that the run had before the last one, `verdict`; None if it had none.
    `sample_verdicts` are those on the last samples.
    """

    run: Path
    lora: Path | None
    steps: int
    epochs: int
    final_loss: float | None
    seconds: float
    stopped: bool
    automatic_stop: AutomaticStop | None = None
    verdict: Verdict | None = None
    worst_verdict: Verdict | None = None
    sample_verdicts: list[Verdict] = []


def train(
    job: TrainJob,
    folder: JobFolder,
    *,
    home: Home,
    report: Report,
    should_stop: Callable[[], bool],
    resume: bool = False,
) -> TrainResult:
    """Train the LoRA of `job` into `folder`; with `resume`, continue from the last resume state, bit-exact on a CPU.

    With several ranks every process calls this; the events of ranks other than the main process are to be ignored.

    Raises ConfigError with all problems of the job before anything is loaded (or, with all images whose damage shows
    only when they are decoded, before the first step), and JobError if the training fails, after saving a resume state.
    """
    begin = time.monotonic()
    phases = PhaseReporter(report)
    ranks = init_rank_group()
    job = job.model_copy(update={"recipe": with_global_batch(job.recipe, ranks.world_size)})
    with ranks.sync_errors():
        checked = preflight(job, folder, home, on_progress=phases)
    job, checked = _with_tested_paths(job, checked, home, report, ranks)
    report_dataset(job, checked.dataset, report)
    if ranks.is_main:
        environment = describe_environment(checked.device, PRECISIONS[checked.dtype], job.recipe.seed)
        write_json(folder.path / "environment.json", environment)
    try:
        with ranks.sync_errors():
            trainer = build_trainer(
                job, folder, checked, home=home, report=report, phases=phases, should_stop=should_stop, ranks=ranks
            )
    except StopRequested:
        return _result(job, folder, None, None, begin, end=LoopEnd.REQUESTED)
    progress = None
    if resume:
        with ranks.sync_errors():
            progress = resume_run(trainer, report)
    if progress is None:
        timesteps = trainer.base.noise_scheduler.config["num_train_timesteps"]
        progress = Progress(timestep_losses=TimestepLosses(total=timesteps))
    if progress.step == 0 and ranks.is_main:
        samples = write_run_records(trainer.folder, trainer.collator)
        report(CaptionsEvent(file=CAPTIONS_FILE, examples=[sample["caption"] for sample in samples[:3]]))
    report_start(
        trainer.dataset,
        trainer.counts,
        trainer.base,
        report,
        device=device_name(trainer.device, ranks.world_size),
        precision=trainer.precision,
        reason=checked.dtype_reason,
    )
    report_recipe_hints(job.recipe, report, zero_terminal_snr=trainer.base.zero_terminal_snr)
    report_dora_axis(trainer.adapters.dora_axis, job.recipe, report)
    if trainer.device.type == "cuda":
        with ranks.sync_errors():
            fit_gpu_memory(trainer, report)
    trainer = with_cuda_graphs(trainer, progress, report)
    with tracked(job.recipe, folder.path, report, enabled=ranks.is_main) as tracked_report:
        end = train_loop(trainer, progress, report=tracked_report, should_stop=should_stop)
    if end is LoopEnd.COMPLETE and ranks.is_main:
        lora = folder.path / f"{job.name}.safetensors"
        save_lora_file(trainer, progress, lora, progress.epoch(trainer.counts))
        report(SavedEvent(path=lora.name))
    destroy_rank_group(ranks)
    return _result(job, folder, trainer, progress, begin, end=end)


def _with_tested_paths(
    job: TrainJob, checked: PreflightResult, home: Home, report: Report, ranks: RankGroup
) -> tuple[TrainJob, PreflightResult]:
    """Return job and checks without the fast paths that this GPU computes wrongly; a new GPU is tested first.

    Several processes only read the results.
    """
    if ranks.world_size > 1:
        failed = known_failures(checked.device, checked.dtype, home)
    else:
        failed = failures_of(checked.device, checked.dtype, home, report)
    recipe = plain_recipe(job.recipe, failed)
    return job.model_copy(update={"recipe": recipe}), replace(checked, failed_paths=failed)


def _result(
    job: TrainJob,
    folder: JobFolder,
    trainer: Trainer | None,
    progress: Progress | None,
    begin: float,
    *,
    end: LoopEnd,
) -> TrainResult:
    verdict = worst = automatic = None
    lora = folder.path / f"{job.name}.safetensors" if end is LoopEnd.COMPLETE else None
    by_samples: list[Verdict] = []
    if trainer and progress:
        record = loss_record(trainer, progress)
        running = len(record.losses) < record.length
        verdict = judge(record, recipe=job.recipe, running=running)
        worst = worst_verdict(record, recipe=job.recipe)
        by_samples = sample_verdicts(trainer, progress)
        if end is LoopEnd.AUTOMATIC:
            automatic, lora = progress.automatic_stops[-1], result_of_stop(trainer, progress)
    return TrainResult(
        run=folder.path,
        lora=lora,
        steps=progress.step if progress else 0,
        epochs=progress.epochs_finished if progress else 0,
        final_loss=progress.last_loss if progress else None,
        seconds=round(time.monotonic() - begin, 3),
        stopped=end is not LoopEnd.COMPLETE,
        automatic_stop=automatic,
        verdict=verdict,
        worst_verdict=worst,
        sample_verdicts=by_samples,
    )
