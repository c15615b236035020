"""Write the trained weights as a LoRA file, never with values that are not finite; keep as many checkpoints as set."""

from __future__ import annotations

import glob
from pathlib import Path

import torch

from lora_studio.errors import NonFiniteLossError
from lora_studio.lora.save import save_lora
from lora_studio.lora.write import adapter_metadata, lora_tensors
from lora_studio.planning.rates import lower_rates_advice
from lora_studio.settings.choices import SaveFormat, SavePrecision
from lora_studio.settings.recipe import Recipe
from lora_studio.training.progress import Progress
from lora_studio.training.reporting.lora_metadata import build_lora_metadata
from lora_studio.training.trainer import Trainer

BEST = "best"  # in the name of the checkpoint with the lowest validation loss, which is never deleted
FILE_DTYPES = {
    SavePrecision.FP16: torch.float16,
    SavePrecision.BF16: torch.bfloat16,
    SavePrecision.FP32: torch.float32,
}


def save_lora_file(trainer: Trainer, progress: Progress, path: Path, epoch: int) -> None:
    """Write the current LoRA, of EMA or schedule-free weights if the run has them, in the recipe's save_precision.

    Raises NonFiniteLossError if the weights are not finite.
    """
    check_finite(trainer, progress)
    metadata = build_lora_metadata(
        trainer.job,
        trainer.dataset,
        trainer.counts,
        trainer.base,
        precision=trainer.precision,
        started=progress.started,
        epoch=epoch,
        step=progress.step,
        processes=trainer.ranks.world_size,
        axis=trainer.adapters.dora_axis,
        dims=trainer.adapters.dims,
    )
    save_format = trainer.recipe.save_format
    if save_format is SaveFormat.DIFFUSERS:
        metadata |= adapter_metadata(trainer.adapters)
    with trainer.averaged_weights.swapped_in():
        tensors = lora_tensors(
            trainer.adapters, trainer.base.unet, file_dtype(trainer.recipe, trainer.dtype), save_format
        )
    save_lora(path, tensors, metadata)


def file_dtype(recipe: Recipe, dtype: torch.dtype) -> torch.dtype:
    """Return the data type of the tensors in the LoRA file of a run in `dtype`."""
    automatic = torch.float32 if dtype == torch.float32 else torch.float16
    return FILE_DTYPES.get(recipe.save_precision, automatic)


def check_finite(trainer: Trainer, progress: Progress) -> None:
    """Raise NonFiniteLossError if a trained weight is not finite."""
    if not trainer.adapters.is_finite():
        raise non_finite_error(trainer, f"The LoRA's weights are not finite at step {progress.step}.")


def non_finite_error(trainer: Trainer, message: str) -> NonFiniteLossError:
    """Return an error that names the last good checkpoint and the learning rates to lower."""
    files = checkpoint_files(trainer)
    kept = f"The last good checkpoint, {files[-1].name}, is kept" if files else "No checkpoint was saved before"
    remedy = f"The learning rate is too high. {lower_rates_advice(trainer.recipe)}"
    return NonFiniteLossError(f"{message} {kept}.", remedy, code="nan")


def checkpoint_files(trainer: Trainer) -> list[Path]:
    """Return the LoRA files of finished epochs and of steps between them, oldest first."""
    folder, name = trainer.folder / "checkpoints", glob.escape(trainer.job.name)
    files = [*folder.glob(f"{name}-{'[0-9]' * 6}.safetensors"), *folder.glob(f"{name}-step{'[0-9]' * 8}.safetensors")]
    return sorted(files, key=lambda file: _checkpoint_step(trainer, file))


def _checkpoint_step(trainer: Trainer, file: Path) -> int:
    label = file.stem.removeprefix(f"{trainer.job.name}-")
    return int(label.removeprefix("step")) if "step" in label else int(label) * trainer.counts.steps_per_epoch


def checkpoints_by_step(trainer: Trainer, progress: Progress) -> dict[int, str]:
    """Return the names of the checkpoints that exist by their steps, with that of the lowest validation loss."""
    found = {_checkpoint_step(trainer, file): file.name for file in checkpoint_files(trainer)}
    best = trainer.folder / "checkpoints" / f"{trainer.job.name}-{BEST}.safetensors"
    losses = {step: loss for step, loss in progress.validation_by_step.items() if step}
    if losses and best.is_file():
        found[min(losses, key=losses.__getitem__)] = best.name
    return found


def result_of_stop(trainer: Trainer, progress: Progress) -> Path | None:
    """Return the checkpoint that is the result of a run that stopped by itself: the last one, or that before the rise.

    None if there was none before the rise, or if it was deleted.
    """
    stop, files = progress.automatic_stops[-1], checkpoints_by_step(trainer, progress)
    kept = [at for at in files if at <= (stop.step if stop.lowest is None else stop.lowest)]
    return trainer.folder / "checkpoints" / files[max(kept)] if kept else None


def delete_old_checkpoints(trainer: Trainer) -> None:
    """Delete all but the last `keep_checkpoints` checkpoints of a run; 0 keeps all."""
    if keep := trainer.recipe.keep_checkpoints:
        for file in checkpoint_files(trainer)[:-keep]:
            file.unlink(missing_ok=True)
