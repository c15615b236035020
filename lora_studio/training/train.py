"""Training a LoRA: the stage's one function."""

from __future__ import annotations

import gc
import importlib.metadata
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from lora_studio import __version__
from lora_studio.config import TrainJob
from lora_studio.device import find_gpu
from lora_studio.files import write_json
from lora_studio.planning.verdicts import Verdict
from lora_studio.project import Home
from lora_studio.runs import JobFolder, Report
from lora_studio.training.adapters import add_adapters
from lora_studio.training.base_models import Base, load_base
from lora_studio.training.cache import LatentCache, Stopped, TextCache, weights_hash
from lora_studio.training.checkpoints import load_state
from lora_studio.training.health import Health
from lora_studio.training.loop import Run, restore, run_prompts, save_adapter, train_loop
from lora_studio.training.optimizers import make_lr_scheduler, make_optimizer, parameter_groups
from lora_studio.training.preflight import ReadyJob, preflight
from lora_studio.training.text import truncated

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "prodigyopt", "safetensors")
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
REPORT_SECONDS = 0.5


class TrainResult(BaseModel):
    """What a training run gave. `lora` is the final file; it is None if the run was stopped before its end."""

    run: Path
    lora: Path | None
    steps: int
    epochs: int
    final_loss: float | None
    seconds: float
    stopped: bool
    verdict: Verdict | None = None


def train(
    job: TrainJob,
    folder: JobFolder,
    *,
    home: Home,
    report: Report,
    should_stop: Callable[[], bool],
    resume: bool = False,
) -> TrainResult:
    """Train the LoRA of `job` into `folder`; with `resume`, go on from its last saved state, bit for bit on a CPU.

    Raises ConfigError with everything that is wrong with the job before anything is loaded; JobError if the work fails,
    after saving what is needed to go on.
    """
    begin = time.monotonic()
    phases = _Phases(report)
    ready = preflight(job, folder, home, on_progress=phases)
    _tell_dataset(job, ready, report)
    write_json(folder.path / "environment.json", describe_environment(job, ready))
    try:
        run = prepare(job, folder, ready, home=home, report=report, phases=phases, should_stop=should_stop)
    except Stopped:
        return _result(job, folder, None, begin, stopped=True)
    if resume:
        _resume(run, report)
    _tell_start(run, ready, report)
    stopped = train_loop(run, report=report, should_stop=should_stop)
    if not stopped:
        lora = folder.path / f"{job.name}.safetensors"
        save_adapter(run, lora, run.epoch)
        report("saved", path=lora.name)
    return _result(job, folder, run, begin, stopped=stopped)


def prepare(
    job: TrainJob,
    folder: JobFolder,
    ready: ReadyJob,
    *,
    home: Home,
    report: Report,
    phases: _Phases,
    should_stop: Callable[[], bool],
) -> Run:
    """Load the base, fill the caches, add the adapters: everything up to the first step. Raises Stopped."""
    recipe, device = job.recipe, ready.device
    base = load_base(
        ready.source,
        dtype=ready.dtype,
        vae=job.vae,
        prediction_type=ready.prediction_type,
        on_progress=lambda message: phases(message, 0, 0),
    )
    _tell_long_captions(base, ready, report)
    latents = LatentCache(home.cache / "latents", weights_hash(base.vae))
    base.vae.to(device)
    latents.fill(
        ready.dataset.items,
        base.vae,
        should_stop=should_stop,
        on_progress=lambda done, total: phases("Encoding images", done, total),
    )
    base.vae.to("cpu")
    texts = None if recipe.text_encoder_lr else _cache_texts(job, ready, base, home, phases, should_stop)
    adapters = add_adapters(
        base.unet,
        base.text_encoders,
        network_dim=recipe.network_dim,
        network_alpha=recipe.network_alpha,
        seed=recipe.seed,
        train_unet=recipe.unet_lr > 0,
        train_text_encoders=recipe.text_encoder_lr > 0,
    )
    for module in (base.unet, *base.text_encoders):
        module.to(device)
        module.train()
    if recipe.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
        for encoder in base.text_encoders:
            encoder.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    optimizer = make_optimizer(recipe, parameter_groups(adapters, recipe))
    return Run(
        job=job,
        folder=folder.path,
        dataset=ready.dataset,
        counts=ready.counts,
        base=base,
        adapters=adapters,
        optimizer=optimizer,
        lr_scheduler=make_lr_scheduler(recipe, optimizer, ready.counts.total_steps),
        scaler=torch.amp.GradScaler(device.type, enabled=ready.dtype == torch.float16),
        latents=latents,
        texts=texts,
        device=device,
        dtype=ready.dtype,
        precision=PRECISIONS[ready.dtype],
        health=Health(),
    )


def _cache_texts(
    job: TrainJob, ready: ReadyJob, base: Base, home: Home, phases: _Phases, should_stop: Callable[[], bool]
) -> TextCache:
    """Encode every caption and prompt once, then let the text encoders go: they are not trained."""
    texts = TextCache(home.cache / "text", weights_hash(*base.text_encoders), job.recipe.clip_skip)
    captions = [item.caption for item in ready.dataset.items]
    for encoder in base.text_encoders:
        encoder.to(ready.device)
    texts.fill(
        [*captions, *run_prompts(job, ready.dataset)],
        base.text_encoders,
        base.tokenizers,
        should_stop=should_stop,
        on_progress=lambda done, total: phases("Encoding captions", done, total),
    )
    base.text_encoders.clear()
    gc.collect()
    if ready.device.type == "cuda":
        torch.cuda.empty_cache()
    return texts


def _resume(run: Run, report: Report) -> None:
    state = load_state(
        run.folder / "checkpoints" / "state",
        on_damage=lambda message: report("warning", code="state_damaged", message=message),
    )
    if state is None:
        report("warning", code="no_state", message="Nothing was saved yet: the run starts from the beginning.")
        return
    restore(run, state)
    if state.values["dataset"] != run.dataset.fingerprint:
        report(
            "warning",
            code="dataset_changed",
            message="Images or captions have changed since the run was stopped; it goes on with the new ones.",
        )
    report("resume", step=run.step)


def _result(job: TrainJob, folder: JobFolder, run: Run | None, begin: float, *, stopped: bool) -> TrainResult:
    return TrainResult(
        run=folder.path,
        lora=None if stopped else folder.path / f"{job.name}.safetensors",
        steps=run.step if run else 0,
        epochs=run.epochs_finished if run else 0,
        final_loss=run.last_loss if run else None,
        seconds=round(time.monotonic() - begin, 3),
        stopped=stopped,
        verdict=run.health.verdict() if run else None,
    )


class _Phases:
    """Reports what is being prepared, a few times a second at most."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._message = ""
        self._told = 0.0

    def __call__(self, message: str, done: int, total: int) -> None:
        now = time.monotonic()
        if message != self._message or now - self._told > REPORT_SECONDS:
            self._report("phase", message=message, **({"done": done, "total": total} if total else {}))
            self._message, self._told = message, now


def _tell_dataset(job: TrainJob, ready: ReadyJob, report: Report) -> None:
    """Say how many captions were found, and what stands in where there are none."""
    items = ready.dataset.items
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


def _tell_long_captions(base: Base, ready: ReadyJob, report: Report) -> None:
    cut = truncated(base.tokenizers[0], [item.caption for item in ready.dataset.items])
    if cut:
        report(
            "warning",
            code="captions_long",
            message=f"{len(cut)} captions are longer than 75 tokens; their ends are not read. "
            f"The first begins {cut[0][:60]!r}.",
        )


def _tell_start(run: Run, ready: ReadyJob, report: Report) -> None:
    report(
        "start",
        total=run.counts.total_steps,
        steps_per_epoch=run.counts.steps_per_epoch,
        epochs=run.counts.epochs,
        images=len(run.dataset.items),
        device=device_name(run.device),
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
        "libraries": {name: _version(name) for name in LIBRARIES},
        "device": device_name(ready.device),
        "gpu": {"name": gpu.name, "vram_gib": gpu.vram_gib} if gpu else None,
        "cuda": torch.version.cuda,
        "precision": PRECISIONS[ready.dtype],
        "seed": job.recipe.seed,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
