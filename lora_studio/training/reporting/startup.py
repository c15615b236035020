"""Reports before the first step: progress, the state of the dataset, the optimizer, the machine."""

from __future__ import annotations

import platform
import time
from typing import Any

import torch

from lora_studio.device import find_gpu
from lora_studio.events import HintEvent, PhaseEvent, Report, StartEvent, WarningEvent
from lora_studio.guide import OPTIMIZERS
from lora_studio.lora.shapes import DoraAxis
from lora_studio.models.load import Base
from lora_studio.models.text_encoding import truncated_captions
from lora_studio.planning.advice import zero_snr_cautions
from lora_studio.planning.optimizers import optimizer_cautions
from lora_studio.planning.steps import StepCount
from lora_studio.plurals import format_count, format_share
from lora_studio.settings.choices import MaskedLoss, SaveFormat
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.training.data.dataset import Dataset
from lora_studio.versions import VERSION, installed_version

LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "prodigyopt",
    "pytorch-optimizer",
    "prodigy-plus-schedule-free",
    "safetensors",
)
REPORT_SECONDS = 0.5


class PhaseReporter:
    """Reports the progress of preparing a run and the time left, at most every `REPORT_SECONDS` per phase.

    The time left is estimated from what the phase has done since its first report: caches may have had the rest.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._message = ""
        self._reported_at = 0.0
        self._begun_at, self._begun_with = 0.0, 0

    def __call__(self, message: str, done: int, total: int, unit: str = "") -> None:
        """Report a phase and its progress in a unit; a `total` of 0 means that its progress is unknown."""
        now = time.monotonic()
        is_new = message != self._message
        if is_new:
            self._begun_at, self._begun_with = now, done
        if not is_new and now - self._reported_at <= REPORT_SECONDS:
            return
        self._message, self._reported_at = message, now
        if not total:
            self._report(PhaseEvent(message=message))
            return
        left = None
        if done > self._begun_with and now > self._begun_at:
            left = round((now - self._begun_at) / (done - self._begun_with) * max(0, total - done), 1)
        self._report(PhaseEvent(message=message, done=done, total=total, unit=unit, seconds_left=left))


def report_dataset(job: TrainJob, dataset: Dataset, report: Report) -> None:
    """Report the number of images and captions, and warn about images, captions and masks that need attention."""
    items, outside = dataset.items, dataset.outside_sets
    if outside:
        report(
            WarningEvent(
                code="images_left_out",
                message=f"{format_count(len(outside), 'image')} outside the N_name folders, like {outside[0].name}. "
                "Only images in these folders are trained on. Move them into one of these folders.",
            )
        )
    missing = [item for item in items if not item.has_caption]
    others = {"regularisation images": dataset.regularization, "validation images": dataset.validation_items}
    counts = "".join(f", {len(members)} {name}" for name, members in others.items() if members)
    report(
        PhaseEvent(
            message=f"{format_count(len(items), 'image')}, {format_count(len(items) - len(missing), 'caption')}{counts}"
        )
    )
    if missing:
        names = _listed([item.path.name for item in missing])
        substitutes = _listed(list(dict.fromkeys(repr(item.caption) for item in missing)))
        report(
            WarningEvent(
                code="captions_missing",
                message=f"{format_share(len(missing), len(items), 'image', 'has', 'have')} no caption ({names}). "
                f"Used instead: {substitutes}.",
            )
        )
    _report_trigger_word(job, dataset, report)
    unmasked = [item for item in dataset.epoch_items if item.mask is None]
    if job.recipe.masked_loss is not MaskedLoss.OFF and unmasked:
        report(
            WarningEvent(
                code="masks_missing",
                message=f"{format_share(len(unmasked), len(dataset.epoch_items), 'image', 'has', 'have')} no mask, "
                f"like {unmasked[0].path.name}: the whole image is trained on.",
            )
        )


def _listed(names: list[str]) -> str:
    """Return at most three names as text."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _report_trigger_word(job: TrainJob, dataset: Dataset, report: Report) -> None:
    """Warn about captions without the trigger word, and regularisation captions with it."""
    word = job.trigger_word.casefold()
    if not word:
        return
    without = [item for item in dataset.items if word not in item.caption.casefold()]
    if without:
        report(
            WarningEvent(
                code="trigger_missing",
                message=f"{len(without)} of {len(dataset.items)} captions do not contain the trigger word "
                f"{job.trigger_word!r}, like that of {without[0].path.name}: the LoRA will not link these images to "
                "it.",
            )
        )
    regularization = [item for item in dataset.regularization if word in item.caption.casefold()]
    if regularization:
        report(
            WarningEvent(
                code="regularization_trigger",
                message=f"{len(regularization)} regularisation captions contain the trigger word, like that of "
                f"{regularization[0].path.name}: they teach that it means the class. Remove it from them.",
            )
        )


def report_truncated_captions(job: TrainJob, base: Base, dataset: Dataset, report: Report) -> None:
    """Warn about captions that are longer than the recipe's `max_token_length`."""
    limit = int(job.recipe.max_token_length)
    truncated = truncated_captions(base.tokenizers[0], [item.caption for item in dataset.epoch_items], limit)
    if truncated:
        report(
            WarningEvent(
                code="captions_long",
                message=f"{len(truncated)} captions are longer than {limit} tokens and are truncated. The first begins "
                f"{truncated[0][:60]!r}.",
            )
        )


def report_dora_axis(axis: DoraAxis | None, recipe: Recipe, report: Report) -> None:
    """Warn if a DoRA continues an older file or run whose axis is not that of most programs."""
    if axis is DoraAxis.OUTPUT and recipe.save_format is SaveFormat.KOHYA:
        report(
            WarningEvent(
                code="dora_axis",
                message="This DoRA continues magnitudes per output, which A1111 misreads, and ComfyUI and Forge read "
                "inexactly. Start a new run, without network_weights, for magnitudes per input.",
                why="Magnitudes of one axis cannot be converted into those of the other.",
            )
        )


def report_start(
    dataset: Dataset, counts: StepCount, base: Base, report: Report, *, device: str, precision: str, reason: str
) -> None:
    """Report how long the run is, and the device, precision and noise schedule that it uses."""
    report(
        StartEvent(
            total=counts.total_steps,
            steps_per_epoch=counts.steps_per_epoch,
            epochs=counts.epochs,
            images=len(dataset.items),
            device=device,
            precision=precision,
            precision_reason=reason,
            prediction_type=base.prediction_type,
            zero_terminal_snr=base.zero_terminal_snr,
        )
    )


def report_recipe_hints(recipe: Recipe, report: Report, *, zero_terminal_snr: bool) -> None:
    """Report hints about the optimizer's use of the recipe's rates and schedule, and about zero terminal SNR.

    `zero_terminal_snr` is whether the run uses it, which for a base outside of the catalogue is known only now.
    """
    if OPTIMIZERS[recipe.optimizer.value].learning_rate_free and not recipe.optimizer_type:
        rates = (
            "takes one learning rate only" if OPTIMIZERS[recipe.optimizer.value].single_rate else "finds one per model"
        )
        trained = (
            "UNet and text encoders are trained" if recipe.trains_text_encoders else "the text encoders are not trained"
        )
        if not recipe.unet_lr:
            trained = "only the text encoders are trained"
        report(
            HintEvent(
                about="recipe",
                code="prodigy_rates",
                message=f"{recipe.optimizer.value} finds the learning rate itself and {rates}: {trained}.",
                why="The learning rates of the recipe are factors on the rate that it finds.",
            )
        )
    for caution in (*optimizer_cautions(recipe), *(zero_snr_cautions(recipe) if zero_terminal_snr else ())):
        report(HintEvent(about="recipe", **caution.model_dump()))


def device_name(device: torch.device, world_size: int = 1) -> str:
    """Return the product name of the run's device, with the number of devices if there are several."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"CPU ({format_count(torch.get_num_threads(), 'thread')})" if device.type == "cpu" else "Apple GPU"
    return f"{world_size} x {name}" if world_size > 1 else name


def describe_environment(device: torch.device, precision: str, seed: int) -> dict[str, Any]:
    """Return the machine and the library versions of a run, for environment.json."""
    gpu = find_gpu()
    return {
        "lora_studio": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: installed_version(name) for name in LIBRARIES},
        "device": device_name(device),
        "gpu": {"name": gpu.name, "vram_gib": gpu.vram_gib} if gpu else None,
        "cuda": torch.version.cuda,
        "precision": precision,
        "seed": seed,
    }
