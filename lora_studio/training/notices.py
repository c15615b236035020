"""What a run says about itself before its first step: progress, the state of the dataset, the machine."""

from __future__ import annotations

import platform
import time
from typing import Any

import torch

from lora_studio import __version__
from lora_studio.config import TrainJob
from lora_studio.device import find_gpu
from lora_studio.libraries import installed
from lora_studio.runs import Report
from lora_studio.training.base_models import Base
from lora_studio.training.loop import Run
from lora_studio.training.preflight import ReadyJob
from lora_studio.training.text import truncated

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "prodigyopt", "safetensors")
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
REPORT_SECONDS = 0.5


class Phases:
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


def tell_dataset(job: TrainJob, ready: ReadyJob, report: Report) -> None:
    """Say how many captions were found, and what stands in where there are none."""
    items = ready.dataset.items
    left_out = ready.dataset.left_out
    if left_out:
        report(
            "warning",
            code="images_left_out",
            message=f"{len(left_out)} images beside the N_name folders, like {left_out[0].name}, are not trained on. "
            "Move them into one of these folders.",
        )
    missing = [item for item in items if not item.captioned]
    report("phase", message=f"{len(items)} images, {len(items) - len(missing)} captions")
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


def tell_long_captions(base: Base, ready: ReadyJob, report: Report) -> None:
    """Say which captions are cut off."""
    cut = truncated(base.tokenizers[0], [item.caption for item in ready.dataset.items])
    if cut:
        report(
            "warning",
            code="captions_long",
            message=f"{len(cut)} captions are longer than 75 tokens; their ends are not read. "
            f"The first begins {cut[0][:60]!r}.",
        )


def tell_start(run: Run, ready: ReadyJob, report: Report) -> None:
    """Say how long the run is, and what does it."""
    name = device_name(run.device)
    report(
        "start",
        total=run.counts.total_steps,
        steps_per_epoch=run.counts.steps_per_epoch,
        epochs=run.counts.epochs,
        images=len(run.dataset.items),
        device=f"{run.team.size} x {name}" if run.team.size > 1 else name,
        precision=run.precision,
        precision_reason=ready.dtype_reason,
        prediction_type=run.base.prediction_type,
    )


def device_name(device: torch.device) -> str:
    """A device as people know it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)" if device.type == "cpu" else "Apple GPU"


def describe_environment(job: TrainJob, ready: ReadyJob) -> dict[str, Any]:
    """The machine and the versions that do a run, for environment.json."""
    gpu = find_gpu()
    return {
        "lora_studio": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: installed(name) for name in LIBRARIES},
        "device": device_name(ready.device),
        "gpu": {"name": gpu.name, "vram_gib": gpu.vram_gib} if gpu else None,
        "cuda": torch.version.cuda,
        "precision": PRECISIONS[ready.dtype],
        "seed": job.recipe.seed,
    }
