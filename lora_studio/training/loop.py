"""The training loop: steps, and what happens at the end of each epoch."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from lora_studio.errors import InputError, NonFiniteLossError, StudioError
from lora_studio.lora.inject import Adapters
from lora_studio.lora.write import adapter_metadata, lora_tensors, save_lora
from lora_studio.models.load import Base
from lora_studio.models.pipeline import TextEmbeddings
from lora_studio.models.text_encoding import encode_text
from lora_studio.planning.steps import StepCount
from lora_studio.settings.choices import SaveFormat
from lora_studio.settings.job_specs import TrainJob
from lora_studio.training.data.cache import LatentCache, TextCache
from lora_studio.training.data.collate import StepInputs
from lora_studio.training.data.dataset import Batch, Dataset, epoch_steps
from lora_studio.training.data.prefetch import Prefetch
from lora_studio.training.data.rng import seeded
from lora_studio.training.distributed import RankGroup
from lora_studio.training.objective import huber_thresholds, signal_to_noise, timestep_weights
from lora_studio.training.optim.ema import AveragedWeights
from lora_studio.training.optim.flat_params import FlatParameters
from lora_studio.training.optim.optimizers import load_optimizer_state
from lora_studio.training.reporting.health import Health
from lora_studio.training.reporting.lora_metadata import describe_lora
from lora_studio.training.reporting.loss_by_timestep import TimestepLosses
from lora_studio.training.reporting.step_log import Journal
from lora_studio.training.resume_state import ResumeState, save_state
from lora_studio.training.samples import SampleSettings, draw_samples, sample_prompts, save_sample
from lora_studio.training.speed.cuda_graph_policy import Replays
from lora_studio.training.speed.memory_budget import patient_step
from lora_studio.training.speed.recompute import Blocks
from lora_studio.training.validation import validate
from lora_studio.workspace.job_folder import JobFolder, Report

NAN_LIMIT = 5  # steps in a row without a finite loss, after which a run ends
STATE_SECONDS = 600.0  # at most so much work is lost when the machine goes down
# Events of an attempt rather than of the training: a resume leaves them in the log, whatever it does again.
ATTEMPT_EVENTS = frozenset({"waiting", "phase", "warning", "start", "resume", "stopped", "failed"})


@dataclass
class Run:
    """A training run in memory: its parts, and where it stands."""

    job: TrainJob
    folder: Path
    dataset: Dataset
    counts: StepCount
    base: Base
    adapters: Adapters
    weights: FlatParameters
    blocks: Blocks
    optimizer: torch.optim.Optimizer
    lr_scheduler: LambdaLR
    scaler: torch.amp.GradScaler
    latents: LatentCache
    texts: TextCache | None
    device: torch.device
    dtype: torch.dtype
    precision: str
    health: Health
    averaged_weights: AveragedWeights
    timestep_losses: TimestepLosses
    ranks: RankGroup = field(default_factory=RankGroup)
    prefetch: Prefetch[StepInputs] = field(default_factory=Prefetch)
    replays: Replays | None = None
    started: float = field(default_factory=time.time)
    step: int = 0
    epochs_finished: int = 0
    epoch_losses: list[float] = field(default_factory=list)
    held_out: list[dict[str, Any]] = field(default_factory=list)
    last_loss: float | None = None
    nan_streak: int = 0
    updating: bool = False
    saved_at: float = field(default_factory=time.monotonic)
    saved: tuple[int, int] | None = None
    told: int | None = None  # bytes of the log before the end of an epoch, while that is not complete
    order: tuple[int, list[list[Batch]]] = (-1, [])

    @property
    def epoch(self) -> int:
        """The epoch of the last step, counted from 1."""
        return max(1, -(-self.step // self.counts.steps_per_epoch))

    @cached_property
    def decides_on_device(self) -> bool:
        """Whether a GPU leaves out a bad step by itself: fused AdamW does, while nothing is averaged or rescaled."""
        fused = isinstance(self.optimizer, torch.optim.AdamW) and bool(self.optimizer.defaults["fused"])
        return fused and self.device.type == "cuda" and not (self.job.recipe.ema_decay or self.scaler.is_enabled())

    @property
    def epochs_due(self) -> int:
        """How many epochs ought to be finished by now; the last one may be cut short by max_train_steps."""
        at_end = self.step >= self.counts.total_steps
        return self.counts.epochs if at_end else self.step // self.counts.steps_per_epoch

    @cached_property
    def loss_weights(self) -> Tensor:
        """The weight of each timestep [T], on the CPU."""
        recipe = self.job.recipe
        return timestep_weights(
            signal_to_noise(self.base.noise_scheduler),
            self.base.prediction_type,
            gamma=recipe.min_snr_gamma,
            debiased=recipe.debiased_estimation_loss,
        )

    @cached_property
    def huber_thresholds(self) -> Tensor:
        """The threshold of the Huber losses at each timestep [T], on the CPU."""
        recipe = self.job.recipe
        return huber_thresholds(self.base.noise_scheduler, recipe.huber_schedule, recipe.huber_c)

    def autocast(self) -> AbstractContextManager:
        """Half precision for what can take it; a no-op where all weights have it, or none."""
        whole = self.dtype == torch.float32 or self.weights.half_only
        return nullcontext() if whole else torch.autocast(self.device.type, self.dtype)

    def dropout(self, first: int) -> AbstractContextManager:
        """The random numbers of dropout for a batch that begins with sample `first` of the step; a no-op without."""
        recipe = self.job.recipe
        if not recipe.network_dropout:
            return nullcontext()
        return seeded(recipe.seed, "dropout", self.step, first, device=self.device)

    def encode(self, captions: Sequence[str]) -> TextEmbeddings:
        """Embeddings [B, 77 n, D] and pooled embeddings [B, P] of captions, from the cache where there is one."""
        recipe = self.job.recipe
        if self.texts is None:
            encoders, tokenizers = self.base.text_encoders, self.base.tokenizers
            return TextEmbeddings(
                *encode_text(encoders, tokenizers, captions, recipe.clip_skip, recipe.max_token_length)
            )
        hidden, pooled = self.texts.load(captions, self.dtype)
        return TextEmbeddings(hidden.to(self.device), pooled.to(self.device))

    def batches(self, step: int) -> list[Batch]:
        """The batches of a step (counted from 0)."""
        epoch, position = divmod(step, self.counts.steps_per_epoch)
        if self.order[0] != epoch:
            self.order = epoch, epoch_steps(self.dataset, self.job.recipe, epoch)
        return self.order[1][position]


def train_loop(run: Run, *, report: Report, should_stop: Callable[[], bool]) -> bool:
    """Train until the run is complete (returns False) or is asked to stop (returns True).

    On a stop, and on any error that leaves the weights good, the state after the last step is saved first. Raises
    NonFiniteLossError after NAN_LIMIT steps without a finite loss, which left the weights as they were before. Of
    several processes, what ends one ends all.
    """
    journal = Journal(run, report, _count_bad)
    try:
        if run.step == 0 and not run.held_out and run.ranks.is_main:
            validate(run, 0, report=report, should_stop=should_stop)
        while True:
            if run.epochs_finished < run.epochs_due:
                journal.tell()
                end_epoch(run, report=report, should_stop=should_stop)
            if run.step >= run.counts.total_steps:
                return False
            if run.ranks.broadcast_flag(should_stop()):
                journal.tell()
                save(run)
                return True
            journal.start_clock()
            step = patient_step(run, report)
            run.step += 1
            journal.add(step)
            saves = time.monotonic() - run.saved_at > STATE_SECONDS
            if journal.due or saves or _within_epoch_due(run):
                journal.tell()
            if _within_epoch_due(run):
                _within_epoch(run, report=report, should_stop=should_stop)
            if saves:
                save(run)
    except Exception:
        if not run.updating:
            for rescue in (journal.tell, lambda: save(run)):
                with suppress(StudioError, OSError, RuntimeError):
                    rescue()
        raise
    finally:
        run.prefetch.close()


def end_epoch(run: Run, *, report: Report, should_stop: Callable[[], bool]) -> None:
    """Report an epoch, save its LoRA, draw samples, say what was noticed, and save the state last of all."""
    epoch = run.epochs_finished + 1
    if run.ranks.is_main:
        run.told = JobFolder(run.folder).sync_events()
        _tell_epoch(run, epoch, report=report, should_stop=should_stop)
        run.told = None
    run.epoch_losses = []
    run.timestep_losses.clear()
    run.epochs_finished = epoch
    save(run)


def _tell_epoch(run: Run, epoch: int, *, report: Report, should_stop: Callable[[], bool]) -> None:
    recipe = run.job.recipe
    if run.epoch_losses:
        report("epoch", epoch=epoch, loss=sum(run.epoch_losses) / len(run.epoch_losses))
        report("timesteps", epoch=epoch, **run.timestep_losses.event())
    last = epoch == run.counts.epochs
    if last or _falls_on(recipe.save_every_n_epochs, epoch) or _falls_on(recipe.save_every_n_steps, run.step):
        _checkpoint(run, epoch, report=report)
    draws = _falls_on(recipe.sample_every_n_epochs, epoch) or (last and recipe.sample_every_n_epochs > 0)
    if draws or _falls_on(recipe.sample_every_n_steps, run.step):
        draw(run, epoch, report=report, should_stop=should_stop)
    with run.averaged_weights.swapped_in():
        validate(run, epoch, report=report, should_stop=should_stop)
    for hint in run.health.hints():
        report("hint", **hint)


def _within_epoch_due(run: Run) -> bool:
    """Whether a file or samples are due after a step that ends no epoch."""
    recipe = run.job.recipe
    ended = run.epochs_finished < run.epochs_due
    due = any(_falls_on(every, run.step) for every in (recipe.save_every_n_steps, recipe.sample_every_n_steps))
    return due and not ended and run.ranks.is_main


def _within_epoch(run: Run, *, report: Report, should_stop: Callable[[], bool]) -> None:
    """What is due after a step that ends no epoch."""
    recipe = run.job.recipe
    run.told = JobFolder(run.folder).sync_events()
    if _falls_on(recipe.save_every_n_steps, run.step):
        _checkpoint(run, None, report=report)
    if _falls_on(recipe.sample_every_n_steps, run.step):
        draw(run, None, report=report, should_stop=should_stop)
    run.told = None


def _falls_on(every: int, number: int) -> bool:
    return every > 0 and number % every == 0


def _checkpoint(run: Run, epoch: int | None, *, report: Report) -> None:
    """Save the LoRA of a finished epoch, or of the current step; named as kohya's tools name them."""
    position = f"step{run.step:08d}" if epoch is None else f"{epoch:06d}"
    path = run.folder / "checkpoints" / f"{run.job.name}-{position}.safetensors"
    save_adapter(run, path, run.epoch if epoch is None else epoch)
    _drop_old_checkpoints(run)
    report("checkpoint", step=run.step, epoch=epoch, path=str(path.relative_to(run.folder)))


def draw(run: Run, epoch: int | None, *, report: Report, should_stop: Callable[[], bool]) -> None:
    """Draw the sample prompts of a finished epoch, or of the current step, until asked to stop."""
    recipe = run.job.recipe
    prompts = run_prompts(run.job, run.dataset)
    settings = SampleSettings(recipe.resolution, recipe.sample_steps, recipe.sample_guidance, recipe.seed)
    position = f"step {run.step}" if epoch is None else f"epoch {epoch}"
    mark = f"{run.step:08d}" if epoch is None else f"e{epoch:06d}"
    report("phase", message=f"Drawing samples of {position}")
    if run.replays is not None:
        run.replays.make_room()
    with run.averaged_weights.swapped_in():
        pictures = draw_samples(
            run.base,
            prompts,
            lambda prompt: run.encode([prompt]),
            settings,
            device=run.device,
            autocast=run.autocast,
            should_stop=should_stop,
        )
        for index, (prompt, image) in enumerate(zip(prompts, pictures, strict=False)):
            if image is None:
                message = f"The sample of {prompt!r} is not drawn: its numbers were not finite."
                report("warning", code="sample_not_finite", message=message)
                continue
            path = run.folder / "samples" / f"{run.job.name}_{mark}_{index:02d}_{recipe.seed}.png"
            save_sample(path, image)
            place = str(path.relative_to(run.folder))
            report("sample", step=run.step, epoch=epoch, index=index, prompt=prompt, seed=recipe.seed, path=place)


def run_prompts(job: TrainJob, dataset: Dataset) -> list[str]:
    """The prompts of the samples; without a trigger word a bare {trigger} stands for the first caption."""
    return sample_prompts(job.recipe.sample_prompts, job.trigger_word, dataset.items[0].caption)


def save_adapter(run: Run, path: Path, epoch: int) -> None:
    """Write the LoRA that the run gives out now: in fp16, or in fp32 if that is what the run computed in.

    Raises NonFiniteLossError if its weights are not finite.
    """
    _check_finite(run)
    metadata = describe_lora(
        run.job,
        run.dataset,
        run.counts,
        run.base,
        precision=run.precision,
        started=run.started,
        epoch=epoch,
        step=run.step,
        processes=run.ranks.world_size,
    )
    stored = torch.float32 if run.dtype == torch.float32 else torch.float16
    form = run.job.recipe.save_format
    if form is SaveFormat.DIFFUSERS:
        metadata |= adapter_metadata(run.adapters)
    with run.averaged_weights.swapped_in():
        tensors = lora_tensors(run.adapters, run.base.unet, stored, form)
    save_lora(path, tensors, metadata)


def save(run: Run) -> None:
    """Save the state after the last step, once. Raises NonFiniteLossError if its weights are not finite."""
    if not run.ranks.is_main or run.saved == (run.step, run.epochs_finished):
        return
    _check_finite(run)
    values: dict[str, Any] = {
        "dataset": run.dataset.fingerprint,
        "epoch_losses": run.epoch_losses,
        "held_out": run.held_out,
        "last_loss": run.last_loss,
        "steps_per_epoch": run.counts.steps_per_epoch,
        "started": run.started,
        "health": run.health.state(),
        "timestep_losses": run.timestep_losses.state(),
        "events": JobFolder(run.folder).sync_events() if run.told is None else run.told,
        "processes": run.ranks.world_size,
    }
    optimizer = {
        "optimizer": run.optimizer.state_dict(),
        "lr_scheduler": run.lr_scheduler.state_dict(),
        "scaler": run.scaler.state_dict(),
        "average": run.averaged_weights.state(),
    }
    save_state(
        run.folder / "checkpoints" / "state",
        ResumeState(run.step, run.epochs_finished, values, run.adapters.state(), optimizer),
    )
    run.saved, run.saved_at = (run.step, run.epochs_finished), time.monotonic()


def restore(run: Run, state: ResumeState) -> None:
    """Put a run where a saved state left it. Raises InputError if it is another recipe's or another world size's."""
    if (processes := state.values.get("processes", 1)) != run.ranks.world_size:
        raise InputError(
            f"The run was begun by {processes} processes, and this is {run.ranks.world_size}: its steps would differ.",
            f"Set num_processes to {processes} in job.toml, or start a new run.",
            code="resume_processes",
        )
    try:
        run.adapters.load_state(state.weights)
        load_optimizer_state(run.optimizer, state.optimizer["optimizer"])
        run.lr_scheduler.load_state_dict(state.optimizer["lr_scheduler"])
        run.scaler.load_state_dict(state.optimizer["scaler"])
        run.averaged_weights.load_state(state.optimizer.get("average"))
        run.weights.sync_half_copies()
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(
            f"The saved state does not fit the recipe: {error}.",
            "Put job.toml back as it was, or start a new run.",
            code="resume_mismatch",
        ) from error
    run.step, run.epochs_finished = state.step, state.epochs_finished
    run.epoch_losses = state.values["epoch_losses"]
    run.held_out = state.values.get("held_out", [])
    run.last_loss = state.values["last_loss"]
    run.started = state.values["started"]
    run.health.load_state(state.values["health"])
    if "timestep_losses" in state.values:
        run.timestep_losses.load_state(state.values["timestep_losses"])
    run.saved = state.step, state.epochs_finished


def _count_bad(run: Run) -> None:
    """One more step without a finite loss. Raises NonFiniteLossError if they were too many."""
    run.nan_streak += 1
    if run.nan_streak >= NAN_LIMIT and run.last_loss is None:
        raise NonFiniteLossError(
            f"Not one of the first {run.step} steps had a finite loss.",
            f"The base or its precision is at fault, not the rate: set mixed_precision to bf16 or fp32 (it is "
            f"{run.precision} now), or download {run.base.name} anew.",
            code="nan",
        )
    if run.nan_streak >= NAN_LIMIT:
        raise _not_finite(run, f"The loss was not finite for {NAN_LIMIT} steps in a row, up to step {run.step}.")


def _check_finite(run: Run) -> None:
    if not run.adapters.is_finite():
        raise _not_finite(run, f"The LoRA's weights are not finite at step {run.step}.")


def _not_finite(run: Run, message: str) -> NonFiniteLossError:
    files = checkpoint_files(run)
    kept = f"The last good checkpoint, {files[-1].name}, is kept" if files else "No checkpoint had been made yet"
    rates = " and ".join(name for name in ("unet_lr", "text_encoder_lr") if getattr(run.job.recipe, name))
    return NonFiniteLossError(f"{message} {kept}.", f"The learning rate is too high: halve {rates}.", code="nan")


def checkpoint_files(run: Run) -> list[Path]:
    """The LoRA files of finished epochs and of steps between them, oldest first."""

    def age(file: Path) -> int:
        position = file.stem.removeprefix(f"{run.job.name}-")
        return int(position.removeprefix("step")) if "step" in position else int(position) * run.counts.steps_per_epoch

    folder, name = run.folder / "checkpoints", glob.escape(run.job.name)
    files = [*folder.glob(f"{name}-{'[0-9]' * 6}.safetensors"), *folder.glob(f"{name}-step{'[0-9]' * 8}.safetensors")]
    return sorted(files, key=age)


def _drop_old_checkpoints(run: Run) -> None:
    """Remove all but the newest `keep_checkpoints` files of this run; 0 keeps all."""
    if keep := run.job.recipe.keep_checkpoints:
        for file in checkpoint_files(run)[:-keep]:
            file.unlink(missing_ok=True)
