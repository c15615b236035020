"""What a run says about itself before its first step: progress, the state of the dataset, the machine."""

from __future__ import annotations

import platform
import time
from typing import Any

import torch

from lora_studio.device import find_gpu
from lora_studio.guide import OPTIMIZERS
from lora_studio.models.load import Base
from lora_studio.models.text_encoding import truncated_captions
from lora_studio.planning.optimizers import optimizer_cautions
from lora_studio.planning.steps import StepCount
from lora_studio.settings.choices import MaskedLoss
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.training.data.dataset import Dataset
from lora_studio.versions import VERSION, installed_version
from lora_studio.workspace.job_folder import Report

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
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
REPORT_SECONDS = 0.5


class PhaseReporter:
    """Reports what is being prepared, a few times a second at most."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._message = ""
        self._told = 0.0

    def __call__(self, message: str, done: int, total: int) -> None:
        """Tell how far one preparation is; a `total` of 0 means that it has no parts."""
        now = time.monotonic()
        if message != self._message or now - self._told > REPORT_SECONDS:
            self._report("phase", message=message, **({"done": done, "total": total} if total else {}))
            self._message, self._told = message, now


def report_dataset(job: TrainJob, dataset: Dataset, report: Report) -> None:
    """Say how many captions were found, and what stands in where there are none."""
    items = dataset.items
    outside_sets = dataset.outside_sets
    if outside_sets:
        report(
            "warning",
            code="images_left_out",
            message=f"{len(outside_sets)} images are outside the N_name folders, like {outside_sets[0].name}: they are "
            "not used for training. Move them into one of these folders.",
        )
    missing = [item for item in items if not item.has_caption]
    counted = {"regularisation images": dataset.regularization, "images held out": dataset.validation_items}
    more = "".join(f", {len(members)} {what}" for what, members in counted.items() if members)
    report("phase", message=f"{len(items)} images, {len(items) - len(missing)} captions{more}")
    if missing:
        names = ", ".join(item.path.name for item in missing[:3]) + (", ..." if len(missing) > 3 else "")
        instead = "the trigger word" if job.trigger_word else f"the name of their folder, {missing[0].caption!r},"
        report(
            "warning",
            code="captions_missing",
            message=f"{len(missing)} of {len(items)} images have no caption ({names}): {instead} stands in for it.",
        )
    word = job.trigger_word.casefold()
    without = [item for item in items if word not in item.caption.casefold()]
    if word and without:
        report(
            "warning",
            code="trigger_missing",
            message=f"{len(without)} of {len(items)} captions lack the trigger word {job.trigger_word!r}, like that of "
            f"{without[0].path.name}: it will call up the rest only.",
        )

    _report_missing_masks(job, dataset, report)
    named = [item for item in dataset.regularization if word and word in item.caption.casefold()]
    if named:
        report(
            "warning",
            code="regularization_trigger",
            message=f"{len(named)} regularisation captions hold the trigger word, like that of {named[0].path.name}: "
            "they teach that it means the class. Take it out.",
        )


def _report_missing_masks(job: TrainJob, dataset: Dataset, report: Report) -> None:
    samples = dataset.epoch_items
    without = [item for item in samples if item.mask is None]
    if job.recipe.masked_loss is not MaskedLoss.OFF and without:
        report(
            "warning",
            code="masks_missing",
            message=f"{len(without)} of {len(samples)} images have no mask, like {without[0].path.name}: "
            "all of such an image counts.",
        )


def report_truncated_captions(job: TrainJob, base: Base, dataset: Dataset, report: Report) -> None:
    """Say which captions are cut off."""
    limit = int(job.recipe.max_token_length)
    cut = truncated_captions(base.tokenizers[0], [item.caption for item in dataset.epoch_items], limit)
    if cut:
        report(
            "warning",
            code="captions_long",
            message=f"{len(cut)} captions are longer than {limit} tokens; their ends are not read. "
            f"The first begins {cut[0][:60]!r}.",
        )


def report_start(
    dataset: Dataset, counts: StepCount, base: Base, report: Report, *, device: str, precision: str, reason: str
) -> None:
    """Report how long the run is, and the device, precision and noise schedule that it uses."""
    report(
        "start",
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


def report_optimizer_hints(recipe: Recipe, report: Report) -> None:
    """Say what the optimizer makes of the recipe's rates and schedule, where it is not what they say."""
    if OPTIMIZERS[recipe.optimizer.value].learning_rate_free:
        shared = "takes one rate only" if OPTIMIZERS[recipe.optimizer.value].single_rate else "finds one for each model"
        trained = "UNet and text encoders learn" if recipe.text_encoder_lr else "text encoders stay as they are"
        if not recipe.unet_lr:
            trained = "only the text encoders learn"
        report(
            "hint",
            about="recipe",
            code="prodigy_rates",
            message=f"{recipe.optimizer.value} finds the rate itself and {shared}: {trained}.",
            why="The rates of the recipe are factors on the rate that it finds.",
        )
    for caution in optimizer_cautions(recipe):
        report("hint", about="recipe", **caution.model_dump())


def device_name(device: torch.device, world_size: int = 1) -> str:
    """Return the product name of the run's device, with the number of devices if there are several."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"CPU ({torch.get_num_threads()} threads)" if device.type == "cpu" else "Apple GPU"
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
