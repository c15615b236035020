"""Write the outputs of a run: LoRA checkpoints, sample images, validation losses and resume states."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field

from lora_studio.device import warn_if_out_of_memory
from lora_studio.errors import StopRequested, StudioError
from lora_studio.events import CheckpointEvent, EpochEvent, PhaseEvent, Report, SampleEvent, WarningEvent
from lora_studio.lora.norms import model_norms
from lora_studio.measures.samples import DrawnSample
from lora_studio.models.png_info import save_png
from lora_studio.planning.automatic_stop import automatic_stop
from lora_studio.training.lora_file import (
    BEST,
    check_finite,
    delete_old_checkpoints,
    result_of_stop,
    save_lora_file,
)
from lora_studio.training.progress import Progress
from lora_studio.training.reporting.health import hints_of, new_hints
from lora_studio.training.resume import capture_state
from lora_studio.training.resume_state import save_state
from lora_studio.training.samples import encode_prompt, generate_samples, sample_parameters, samples_of
from lora_studio.training.trainer import Trainer
from lora_studio.training.validation import evaluations_of, loss_record, measure_base, sample_verdicts, validate
from lora_studio.workspace.job_folder import JobFolder

STATE_INTERVAL = 600.0  # seconds between resume states: the most work that a crash of the machine loses
EPOCH_STATE_INTERVAL = 120.0  # the same at the ends of epochs, which may be as short as a step; a state takes seconds


@dataclass
class Outputs:
    """Writes the outputs of a run and reports them; on ranks other than the main process it writes nothing.

    `saved_position` is the (step, epochs) of the last resume state, `saved_at` its monotonic time. While checkpoints
    and samples are being written, `log_offset` is the size in bytes that the event log had before: a resume repeats
    the events from there. `stops` is True once the losses have ended the run.
    """

    trainer: Trainer
    progress: Progress
    report: Report
    should_stop: Callable[[], bool]
    saved_position: tuple[int, int] | None = None
    saved_at: float = field(default_factory=time.monotonic)
    log_offset: int | None = None
    stops: bool = False

    @property
    def state_due(self) -> bool:
        """True if the last resume state is older than `STATE_INTERVAL`."""
        return time.monotonic() - self.saved_at > STATE_INTERVAL

    @property
    def due_within_epoch(self) -> bool:
        """True if a checkpoint or samples are due, or were asked for, after a step that does not end an epoch."""
        progress = self.progress
        if progress.epochs_finished < progress.epochs_due(self.trainer.counts) or not self.trainer.ranks.is_main:
            return False
        due = _is_due(self.trainer.recipe.save_every_n_steps, progress.step) or self._samples_due
        due = due or self._validation_due
        return due or JobFolder(self.trainer.folder).save_requested()

    def write_before_training(self) -> None:
        """Before the first step, measure the base's and the fixed-noise loss, and draw samples if that is set."""
        if self.progress.step or not self.trainer.ranks.is_main:
            return
        if self.progress.base_losses is None:
            measure_base(self.trainer, self.progress, report=self.report, should_stop=self.should_stop)
        if not self.progress.validation_losses:
            self._validate(0)
        if self.trainer.recipe.sample_at_first:
            self.log_offset = JobFolder(self.trainer.folder).sync_events()
            self.write_samples(None)
            if not self.should_stop():  # else a resume draws them again
                self.log_offset = None

    def finish_epoch(self) -> None:
        """Report an epoch, save its LoRA, generate samples, validate, report hints.

        Last, save the resume state after the last epoch, on the user's request, or if the previous one is older than
        `EPOCH_STATE_INTERVAL`.
        """
        epoch, requested = self.progress.epochs_finished + 1, False
        if self.trainer.ranks.is_main:
            self.log_offset = JobFolder(self.trainer.folder).sync_events()
            self._write_epoch(epoch)
            requested = self._save_on_request()
            self.log_offset = None
        self.progress.timestep_losses.clear()
        self.progress.epochs_finished = epoch
        complete = self.progress.step >= self.trainer.counts.total_steps
        if complete or requested or time.monotonic() - self.saved_at > EPOCH_STATE_INTERVAL:
            self.save_state()

    def write_within_epoch(self) -> None:
        """Write the checkpoint and samples that are due after a step that does not end an epoch; last, the state."""
        self.log_offset = JobFolder(self.trainer.folder).sync_events()
        if _is_due(self.trainer.recipe.save_every_n_steps, self.progress.step):
            self.save_checkpoint(None)
        if self._samples_due:
            self.write_samples(None)
        if self._validation_due:
            self._validate(self.progress.epochs_finished)
        requested = self._save_on_request()
        self.log_offset = None
        if requested:
            self.save_state()

    def save_before_stop(self) -> None:
        """Save a checkpoint of the last step, unless it has one or no step was made, and the resume state.

        A run that stopped by itself after a rise has its result in an earlier checkpoint, which stays the last one.
        """
        recipe, progress = self.trainer.recipe, self.progress
        ends_epoch = progress.step == progress.epochs_finished * self.trainer.counts.steps_per_epoch
        saved = _is_due(recipe.save_every_n_steps, progress.step) or (
            ends_epoch and _is_due(recipe.save_every_n_epochs, progress.epochs_finished)
        )
        rose = self.stops and progress.automatic_stops[-1].lowest is not None
        saved = saved or (rose and result_of_stop(self.trainer, progress) is not None)
        if self.trainer.ranks.is_main and progress.step > 0 and not saved:
            self.save_checkpoint(None)
            self.saved_position = None  # save the state again, so that a resume keeps the event of the checkpoint
        self.save_state()

    def save_checkpoint(self, epoch: int | None) -> None:
        """Save the LoRA of a finished epoch, or of the last step if `epoch` is None; with kohya's file names."""
        trainer, progress = self.trainer, self.progress
        position = f"step{progress.step:08d}" if epoch is None else f"{epoch:06d}"
        self._save_lora(position, epoch)
        delete_old_checkpoints(trainer)

    def _save_on_request(self) -> bool:
        """If the user has asked for it, save the LoRA in a file that `keep_checkpoints` never deletes.

        Return whether the state is to be saved, too.
        """
        folder = JobFolder(self.trainer.folder)
        if not folder.save_requested():
            return False
        self._save_lora(f"step{self.progress.step:08d}-saved", None)
        folder.clear_save_request()
        return True

    def _save_lora(self, position: str, epoch: int | None) -> None:
        trainer, progress = self.trainer, self.progress
        path = trainer.folder / "checkpoints" / f"{trainer.job.name}-{position}.safetensors"
        save_lora_file(trainer, progress, path, progress.epoch(trainer.counts) if epoch is None else epoch)
        self.report(CheckpointEvent(step=progress.step, epoch=epoch, path=str(path.relative_to(trainer.folder))))

    def write_samples(self, epoch: int | None) -> None:
        """Write the sample images of a finished epoch, or of the last step if `epoch` is None, until a stop request.

        Afterwards the user's request for samples, if there is one, is granted.
        """
        trainer, step = self.trainer, self.progress.step
        samples = samples_of(trainer.job, trainer.dataset, trainer.base)
        position = f"step {step}" if epoch is None else f"epoch {epoch}"
        file_part = f"{step:08d}" if epoch is None else f"e{epoch:06d}"
        self.report(PhaseEvent(message=f"Generating samples of {position}"))
        trainer.gradient_pass.free_for_sampling()
        with trainer.averaged_weights.swapped_in():
            images = generate_samples(
                trainer.base,
                samples,
                lambda prompt: encode_prompt(prompt, trainer),
                autocast=trainer.batch_loss.autocast,
                decode_in_half=trainer.decodes_in_half,
                report=self.report,
                should_stop=self.should_stop,
            )
            drawn = []
            for index, (sample, image) in enumerate(zip(samples, images, strict=False)):
                if image is None:
                    message = f"The sample for {sample.prompt!r} has NaN or Inf values and is not saved."
                    self.report(WarningEvent(code="sample_not_finite", message=message))
                    continue
                path = trainer.folder / "samples" / f"{trainer.job.name}_{file_part}_{index:02d}_{sample.seed}.png"
                save_png(image, path, sample_parameters(sample, trainer, step))
                name = str(path.relative_to(trainer.folder))
                self.report(SampleEvent(step=step, epoch=epoch, index=index, path=name, **asdict(sample)))
                drawn.append(DrawnSample(index, sample.prompt, image))
        if not self.should_stop():
            self._measure_samples(drawn, epoch)
        JobFolder(trainer.folder).clear_sample_request()

    def _measure_samples(self, samples: Sequence[DrawnSample], epoch: int | None) -> None:
        """Measure the samples of this step, report the measures and each sign in them once.

        Without memory or the model, a warning is reported instead.
        """
        trainer, progress = self.trainer, self.progress
        if trainer.sample_measurer is None:
            return
        found = None
        try:
            message = "Memory ran out while measuring the samples."
            with warn_if_out_of_memory(self.report, "sample_measures_out_of_memory", message):
                found = trainer.sample_measurer.measure(samples, step=progress.step, epoch=epoch)
        except StopRequested:
            return
        except StudioError as error:
            self.report(WarningEvent(code=error.code, message=error.message, why=error.remedy))
        if found is None:
            return
        earlier = [event for event in progress.sample_measures if event.step < found.step]
        progress.sample_measures = [*earlier, found]
        self.report(found)
        verdicts = sample_verdicts(trainer, progress)
        for hint in hints_of(progress, verdicts):
            self.report(hint)

    def save_state(self) -> None:
        """Save the resume state after the last step, if it is not saved yet.

        Raises NonFiniteLossError for weights that are not finite.
        """
        trainer, progress = self.trainer, self.progress
        position = progress.step, progress.epochs_finished
        if not trainer.ranks.is_main or self.saved_position == position:
            return
        check_finite(trainer, progress)
        events_size = JobFolder(trainer.folder).sync_events() if self.log_offset is None else self.log_offset
        save_state(trainer.folder / "checkpoints" / "state", capture_state(trainer, progress, events_size))
        self.saved_position, self.saved_at = position, time.monotonic()

    @property
    def _samples_due(self) -> bool:
        """True if the recipe wants samples after this step, or the user has asked for them."""
        due = _is_due(self.trainer.recipe.sample_every_n_steps, self.progress.step)
        return due or JobFolder(self.trainer.folder).samples_requested()

    def _write_epoch(self, epoch: int) -> None:
        trainer, recipe, step = self.trainer, self.trainer.recipe, self.progress.step
        if losses := self.progress.losses_of_epoch(trainer.counts):
            self._report_epoch(epoch, losses)
        last = epoch == trainer.counts.epochs
        if last or _is_due(recipe.save_every_n_epochs, epoch) or _is_due(recipe.save_every_n_steps, step):
            self.save_checkpoint(epoch)
        sample_due = _is_due(recipe.sample_every_n_epochs, epoch) or (last and recipe.sample_every_n_epochs > 0)
        if sample_due or self._samples_due:
            self.write_samples(epoch)
        if evaluations_of(trainer).due_after_epoch(epoch, trainer.counts.epochs):
            self._validate(epoch)
        for hint in new_hints(self.progress, loss_record(trainer, self.progress), recipe):
            self.report(hint)

    def _report_epoch(self, epoch: int, losses: Sequence[float]) -> None:
        """Report the mean losses of an epoch, by timestep and by image, and the norms of what the LoRA changes."""
        trainer, progress = self.trainer, self.progress
        with trainer.averaged_weights.swapped_in():
            norms = {f"{model}_norm": norm for model, norm in model_norms(trainer.adapters).items()}
        self.report(EpochEvent.model_validate({"epoch": epoch, "loss": sum(losses) / len(losses)} | norms))
        self.report(progress.timestep_losses.event(epoch))
        if (event := progress.image_losses.write(trainer.folder, epoch)) is not None:
            self.report(event)

    @property
    def _validation_due(self) -> bool:
        """True if the fixed-noise loss is due after a step that does not end an epoch."""
        trainer = self.trainer
        return evaluations_of(trainer).due_within_epoch(self.progress.step, trainer.counts.steps_per_epoch)

    def _validate(self, epochs: int) -> None:
        """Compute the fixed-noise loss after this many epochs; save the LoRA if it is the lowest validation loss."""
        trainer, progress = self.trainer, self.progress
        with trainer.averaged_weights.swapped_in() if progress.step else nullcontext():
            validate(trainer, progress, epochs, report=self.report, should_stop=self.should_stop)
        losses, step = progress.validation_by_step, progress.step
        if trainer.dataset.validation_items and step > 0 and step in losses and losses[step] == min(losses.values()):
            self._save_lora(BEST, None)
        if step > 0:
            self._check_automatic_stop()

    def _check_automatic_stop(self) -> None:
        """Note in the progress that the run stops by itself, if its losses say so."""
        trainer, progress = self.trainer, self.progress
        record = loss_record(trainer, progress)
        found = automatic_stop(record, trainer.recipe, ignored={stop.code for stop in progress.automatic_stops})
        if found is not None:
            progress.automatic_stops.append(found)
            self.stops = True


def _is_due(every: int, number: int) -> bool:
    return every > 0 and number % every == 0
