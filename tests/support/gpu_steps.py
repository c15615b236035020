"""Time and memory of a step on a GPU at SDXL's real size: 1024 px, rank 32, AdamW, kohya's layers, random weights.

Each row is a whole optimizer step of the studio (`train_step` on a fixed batch) in bf16, with the base in bf16, int8 or
nf4: eager, with CUDA graphs, and with the UNet's repeated blocks compiled by inductor. In rows with a size in GB,
enough of the UNet's blocks are recomputed to stay below it. For comparison there is the loop of diffusers' example with
peft's layers and cached latents and embeddings. Seconds are the median of `STEPS`; the ceiling is the fastest bf16
matrix product of this GPU. The last lines say whether graphs or compiled blocks save at least `MIN_SAVING`.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn

from lora_studio.events import Event, PhaseEvent, WarningEvent
from lora_studio.lora.inject import add_adapters
from lora_studio.models.locate import SDXL_CONFIG
from lora_studio.models.quantize import quantize
from lora_studio.planning.steps import count_steps
from lora_studio.settings.choices import BasePrecision
from lora_studio.settings.recipe import Recipe
from lora_studio.training.batch_loss import BatchLoss
from lora_studio.training.data.batch import BatchTensors, StepBatches
from lora_studio.training.distributed import SINGLE_PROCESS
from lora_studio.training.optim.ema import AveragedWeights
from lora_studio.training.optim.flat_params import FlatParameters
from lora_studio.training.optim.optimizers import make_optimizer, parameter_groups, parameter_layout
from lora_studio.training.optim.schedules import make_lr_scheduler
from lora_studio.training.speed.attention import use_plain_attention
from lora_studio.training.speed.cuda_graph_capture import CudaGraphCapturer, find_capturer
from lora_studio.training.speed.cuda_graph_policy import TIMED_BATCHES, CudaGraphPass
from lora_studio.training.speed.geglu import use_lean_geglu
from lora_studio.training.speed.gradient_pass import EagerPass
from lora_studio.training.speed.recompute import BlockCheckpointing, choose_recomputed
from lora_studio.training.step import train_step
from lora_studio.training.trainer import Trainer

STEPS, WARM_UP = 12, 3
MANY_STEPS = 10**6  # enough that CUDA graphs always pay off
TFLOP = 15.0  # forward and backward pass of one image of 1024 px at rank 32, counted on the meta device
MIN_SAVING = 0.1  # of the seconds of an eager step, for a way to launch steps to be recommended
RESERVE = 0.2e9  # bytes of a memory limit that are kept free
GOALS = """Goals, on an H100: batch 1 at most 0.12 s a step; batch 4 at least 45 % of the ceiling;
batch 1 within 8 GB (int8) and 6 GB (nf4) at no more than 1.5 times the seconds of bf16."""


@dataclass(frozen=True)
class ModelSpec:
    """The model to measure: the UNet's configuration, image side in px, the LoRA's rank, device and dtype."""

    config: dict[str, Any]
    side: int
    rank: int
    device: torch.device
    dtype: torch.dtype = torch.bfloat16


class Launch(Enum):
    """How the kernels of a step are launched."""

    EAGER = "eager"
    GRAPHS = "CUDA graphs"
    COMPILED = "compiled"


@dataclass(frozen=True)
class Case:
    """A row: batch size, the base's precision, how a step is launched, and a memory limit in bytes (0: none)."""

    batch: int
    base: BasePrecision
    launch: Launch
    limit: float = 0.0


@dataclass(frozen=True)
class Measured:
    """Median seconds per step, peak bytes (0 if the device does not report them), and notes."""

    seconds: float
    peak: int
    notes: str = ""


def real_size(device: torch.device) -> ModelSpec:
    """Return SDXL at its real size."""
    return ModelSpec(json.loads((SDXL_CONFIG / "unet" / "config.json").read_text("utf-8")), 1024, 32, device)


def cases() -> list[Case]:
    """Return the table's rows in order."""
    kinds = [(batch, base) for batch in (1, 2, 4) for base in BasePrecision]
    limits = [(BasePrecision.INT8, 8e9), (BasePrecision.NF4, 6e9)]
    return [
        *(Case(batch, base, launch) for batch, base in kinds for launch in Launch),
        *(Case(1, base, launch, limit) for base, limit in limits for launch in (Launch.EAGER, Launch.GRAPHS)),
    ]


def random_unet(spec: ModelSpec) -> UNet2DConditionModel:
    """Build the UNet on the device: norms 1, biases 0, other weights normal with variance 1 / inputs."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(spec.config).to(spec.dtype).requires_grad_(False)
    unet.to_empty(device=spec.device)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if weight.dim() < 2:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                weight.normal_(std=weight[0].numel() ** -0.5)
    return unet


def random_batch(spec: ModelSpec, batch: int) -> BatchTensors:
    """Build a batch like the collator's, in pinned memory for a GPU."""
    source = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source)

    text = spec.config["projection_class_embeddings_input_dim"] - 6 * spec.config["addition_time_embed_dim"]
    latents = (batch, spec.config["in_channels"], spec.side // 8, spec.side // 8)
    made = BatchTensors(
        noisy=draw(*latents).to(spec.dtype),
        target=draw(*latents),
        t=torch.arange(100, 100 + batch),
        time_ids=torch.tensor([[spec.side, spec.side, 0, 0, spec.side, spec.side]] * batch),
        weights=torch.ones(batch),
        sample_count=torch.tensor(float(batch)),
        hidden=draw(batch, 77, spec.config["cross_attention_dim"]).to(spec.dtype),
        pooled=draw(batch, text).to(spec.dtype),
    )
    return made.pin_memory() if spec.device.type == "cuda" else made


def make_trainer(spec: ModelSpec, case: Case) -> Trainer:
    """Build a trainer with everything that a step reads, and with the same batch in every step."""
    recipe = Recipe(network_dim=spec.rank, network_alpha=spec.rank / 2, text_encoder_lr=0.0, optimizer="AdamW")
    unet = random_unet(spec)
    quantize(unet, case.base, spec.dtype, spec.device)
    adapters = add_adapters(unet, [], recipe)
    unet.to(spec.device).train()
    weights = FlatParameters(parameter_groups(adapters, recipe), parameter_layout(recipe), adapters, spec.dtype)
    use_plain_attention(unet)
    use_lean_geglu(unet)
    if case.launch is Launch.COMPILED:
        unet.compile_repeated_blocks()
    optimizer = make_optimizer(recipe, weights.groups)
    inputs = StepBatches(case.batch, [(0, random_batch(spec, case.batch))])
    counts = count_steps({(spec.side, spec.side): case.batch * MANY_STEPS}, batch_size=case.batch, epochs=1)
    base: Any = SimpleNamespace(unet=unet, text_encoders=[])
    job: Any = SimpleNamespace(recipe=recipe)
    prefetch: Any = SimpleNamespace(get=lambda step, total, make: inputs)
    collator: Any = SimpleNamespace(
        collate_step=lambda step: inputs,
        images=lambda step: [None] * case.batch,
        timesteps=lambda step, first, count: [0] * count,
        batch_pixels=lambda step: case.batch * spec.side**2,
    )
    scaler = torch.amp.GradScaler(spec.device.type, enabled=False)
    batch_loss = BatchLoss(base, recipe, spec.device, spec.dtype, weights.half_only)
    return Trainer(
        job=job,
        folder=Path(),
        counts=counts,
        base=base,
        adapters=adapters,
        block_checkpointing=BlockCheckpointing(unet, preserve_rng_state=False),
        weights=weights,
        optimizer=optimizer,
        lr_scheduler=make_lr_scheduler(recipe, optimizer, counts.total_steps),
        scaler=scaler,
        averaged_weights=AveragedWeights(optimizer, weights.flat, 0.0),
        collator=collator,
        device=spec.device,
        dtype=spec.dtype,
        ranks=SINGLE_PROCESS,
        batch_loss=batch_loss,
        gradient_pass=EagerPass(batch_loss, weights, scaler),
        prefetch=prefetch,
    )


def fit(trainer: Trainer, case: Case, batch: BatchTensors) -> str:
    """Recompute as many blocks as the case's memory limit needs; return their number as text."""
    trainer.block_checkpointing.recompute_all()
    for _ in range(2):  # the second one has the optimizer's state
        reset_peak(trainer.device)
        train_step(trainer, 0)
    room = case.limit - RESERVE - peak_bytes(trainer.device)
    _, costs = trainer.block_checkpointing.measure(
        lambda: trainer.batch_loss(batch.to(trainer.device)), [*trainer.weights.flat, *trainer.weights.half_copies]
    )
    trainer.block_checkpointing.recompute_only(choose_recomputed(costs, room))
    return (
        f"{len(trainer.block_checkpointing.recomputed)} of {len(trainer.block_checkpointing.blocks)} blocks recomputed"
    )


def measure(
    spec: ModelSpec,
    case: Case,
    find: Callable[[torch.device], CudaGraphCapturer | None] = find_capturer,
    steps: int = STEPS,
) -> Measured:
    """Measure a case. Raises torch.OutOfMemoryError."""
    trainer = make_trainer(spec, case)
    notes: list[str] = []
    _, batch = trainer.prefetch.get(0, 1, partial(lambda step: None)).batches[0]
    if case.limit:
        notes.append(fit(trainer, case, batch))

    def add_note(event: Event) -> None:
        assert isinstance(event, PhaseEvent | WarningEvent)
        notes.append(event.message.partition(" latents of ")[2] or event.message)

    for _ in range(WARM_UP):
        train_step(trainer, 0).read()
    reset_peak(spec.device)
    graphs = case.launch is Launch.GRAPHS
    if graphs and (capturer := find(spec.device)) is not None:
        graph_pass = CudaGraphPass(
            trainer.gradient_pass, capturer, trainer.weights, lambda batch, this_epoch: MANY_STEPS, add_note
        )
        trainer = replace(trainer, gradient_pass=graph_pass)
        for _ in range(2 * TIMED_BATCHES + 2):  # until it is decided whether the graph is kept
            train_step(trainer, 0).read()
    elif graphs:
        notes.append("no CUDA graphs on this device")
    seconds = seconds_of(lambda: train_step(trainer, 0), spec.device, steps)
    return Measured(seconds, peak_bytes(spec.device), "; ".join(notes))


def measure_peft(spec: ModelSpec, batch: int, steps: int = STEPS) -> Measured:
    """Measure diffusers' example loop: peft's layers in fp32 under autocast, AdamW, a GPU sync for each loss."""
    unet = random_unet(spec)
    recipe = Recipe(network_dim=spec.rank, network_alpha=spec.rank / 2, text_encoder_lr=0.0)
    with torch.device("meta"):
        targets = [
            path for _, path, _ in add_adapters(UNet2DConditionModel.from_config(spec.config), [], recipe).layers
        ]
    unet.add_adapter(LoraConfig(r=spec.rank, lora_alpha=spec.rank // 2, target_modules=targets))
    unet.to(spec.device).train()
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=1e-2)
    inputs = random_batch(spec, batch)

    def step() -> None:
        here = inputs.to(spec.device)
        with torch.autocast(spec.device.type, spec.dtype, enabled=spec.dtype != torch.float32):
            added = {"text_embeds": here.pooled, "time_ids": here.time_ids}
            prediction = unet(here.noisy, here.t, here.hidden, added_cond_kwargs=added, return_dict=False)[0]
        loss = nn.functional.mse_loss(prediction.float(), here.target)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    for _ in range(WARM_UP):
        step()
    reset_peak(spec.device)
    return Measured(seconds_of(step, spec.device, steps), peak_bytes(spec.device))


def seconds_of(step: Callable[[], object], device: torch.device, steps: int) -> float:
    """Return the median seconds per step on the device, from start to start, without syncs in between."""
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(steps):
            step()
            marks.append(time.perf_counter())
        return statistics.median(after - before for before, after in pairwise(marks))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize(device)
    return statistics.median(one.elapsed_time(two) / 1000 for one, two in pairwise(events))


def ceiling(device: torch.device, dtype: torch.dtype = torch.bfloat16, side: int = 8192, times: int = 20) -> float:
    """Return TFLOP/s of the fastest of three series of matrix products."""
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    result = torch.empty_like(left)
    best = min(seconds_of(lambda: torch.mm(left, right, out=result), device, times) for _ in range(3))
    return 2 * side**3 / best / 1e12


def reset_peak(device: torch.device) -> None:
    """Reset the peak memory statistics of the device."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Return the peak bytes of tensors since `reset_peak`; 0 if the device does not report them."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


@contextmanager
def memory_freed(device: torch.device) -> Iterator[None]:
    """Free all memory at the end of the block."""
    try:
        yield
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def row(
    label: str, batch: int, work: Callable[[], Measured], spec: ModelSpec, top: float, plain: float | None
) -> Measured:
    """Measure and print a row, or its error. `plain` is the seconds of peft's loop with this batch size."""
    found = Measured(float("nan"), 0)
    with memory_freed(spec.device):
        try:
            found = work()
        except (RuntimeError, ImportError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"{label:<34} missing: {reason[:100]}", flush=True)
            return found
    work_done = TFLOP * batch * (spec.side / 1024) ** 2
    ratio = f"{plain / found.seconds:5.2f}" if plain is not None else "    -"
    share = 100 * work_done / found.seconds / top
    figures = f"{found.seconds:8.3f} {ratio:>8} {share:10.1f} % {found.peak / 2**30:8.2f} {found.peak / 1e9:8.2f}"
    print(f"{label:<34}{figures}  {found.notes}".rstrip(), flush=True)
    return found


def table(
    spec: ModelSpec,
    chosen: list[Case],
    top: float,
    find: Callable[[torch.device], CudaGraphCapturer | None] = find_capturer,
    steps: int = STEPS,
) -> None:
    """Print the cases, each after peft's loop with its batch size, then what they recommend."""
    print(f"{'':<34}{'s/step':>8} {'x peft':>8} {'of ceiling':>12} {'GiB':>8} {'GB':>8}")
    plain: dict[int, float] = {}
    seconds: dict[Case, float] = {}
    for case in chosen:
        if case.batch not in plain:
            work = partial(measure_peft, spec, case.batch, steps)
            plain[case.batch] = row(f"batch {case.batch}, peft, bf16", case.batch, work, spec, top, None).seconds
        base = "bf16" if case.base is BasePrecision.FULL else case.base.value
        within = f" within {case.limit / 1e9:.0f} GB" if case.limit else ""
        label = f"batch {case.batch}, {base}{within}, {case.launch.value}"
        work = partial(measure, spec, case, find, steps)
        seconds[case] = row(label, case.batch, work, spec, top, plain[case.batch]).seconds
    print(recommendation(seconds))


def recommendation(seconds: dict[Case, float]) -> str:
    """Return which way to launch steps the measured seconds per step recommend, from the rows with a base in bf16."""
    lines = []
    for launch in (Launch.GRAPHS, Launch.COMPILED):
        savings = [
            1 - found / eager
            for case, found in seconds.items()
            if case.launch is launch and case.base is BasePrecision.FULL
            if (eager := seconds.get(replace(case, launch=Launch.EAGER))) is not None
        ]
        figures = ", ".join(f"{saving:.0%}" for saving in savings)
        verdict = "recommended" if savings and min(savings) >= MIN_SAVING else "not recommended"
        lines.append(f"{launch.value}: {f'saves {figures} of an eager step' if savings else 'not measured'}, {verdict}")
    return "\n".join(lines)


def gpu_table() -> None:
    """Print the table for this machine's GPU, or one line that it has none."""
    if not torch.cuda.is_available():
        print("No CUDA GPU here: the steps at SDXL's real size are not measured.")
        return
    device = torch.device("cuda")
    top = ceiling(device)
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}: {top:.0f} TFLOP/s at most in bf16")
    table(real_size(device), cases(), top)
    print(GOALS)
