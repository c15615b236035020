"""What a step costs on a GPU at SDXL's real size: 1024 px, rank 32, AdamW, kohya's layers, random weights.

Each row is a whole optimizer step of the studio's own (`train_step`; its batch is made once), in bf16, with the base in
bf16, 8 or 4 bits, as it is and with CUDA graphs; where a size in GB stands, as many of the UNet's blocks are computed
twice as it takes to stay below. Beside them is the loop of diffusers' example over peft's layers, its latents and text
made beforehand. Seconds are the median of `STEPS`; the ceiling is the fastest bf16 matrix product of this GPU.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn

from lora_studio.lora.inject import add_adapters
from lora_studio.models.locate import SDXL_CONFIG
from lora_studio.models.quantize import quantize
from lora_studio.planning.steps import count_steps
from lora_studio.settings.choices import BasePrecision
from lora_studio.settings.recipe import Recipe
from lora_studio.training.data.batch import BatchTensors, StepBatches
from lora_studio.training.data.collate import Collator
from lora_studio.training.optim.ema import AveragedWeights
from lora_studio.training.optim.flat_params import FlatParameters
from lora_studio.training.optim.optimizers import make_optimizer, parameter_groups, parameter_layout
from lora_studio.training.optim.schedules import make_lr_scheduler
from lora_studio.training.reporting.health import Health
from lora_studio.training.reporting.loss_by_timestep import TimestepLosses
from lora_studio.training.run import Run
from lora_studio.training.speed.attention import use_plain_attention
from lora_studio.training.speed.cuda_graph_capture import CudaRecorder, find_recorder
from lora_studio.training.speed.cuda_graph_policy import PROBES, Replays
from lora_studio.training.speed.geglu import use_lean_gates
from lora_studio.training.speed.recompute import Blocks, choose
from lora_studio.training.step import batch_losses, forward_backward, train_step

STEPS, WARM_UP = 12, 3
MANY = 10**6  # steps of a run that has as many as graphs want
TFLOP = 15.0  # forward and backward pass of one picture of 1024 px at rank 32, counted on the meta device
RESERVE = 0.2e9  # bytes below a goal that blocks are chosen for
GOALS = """Goals, on an H100: batch 1 at most 0.12 s a step; batch 4 at least 45 % of the ceiling;
batch 1 within 8 GB (int8) and 6 GB (nf4) at no more than 1.5 times the seconds of bf16."""


@dataclass(frozen=True)
class Size:
    """What is measured: the UNet's configuration, the side in px, the LoRA's rank, and where and in what it is done."""

    config: dict[str, Any]
    side: int
    rank: int
    device: torch.device
    dtype: torch.dtype = torch.bfloat16


@dataclass(frozen=True)
class Case:
    """A row: pictures a step, the base's precision, with graphs or without, bytes that it may take (0: any)."""

    batch: int
    base: BasePrecision
    graphs: bool
    limit: float = 0.0


@dataclass(frozen=True)
class Measured:
    """Median seconds of a step, bytes at the peak (0 where the device does not tell), and what was said meanwhile."""

    seconds: float
    peak: int
    said: str = ""


def real_size(device: torch.device) -> Size:
    """SDXL as it is trained."""
    return Size(json.loads((SDXL_CONFIG / "unet" / "config.json").read_text("utf-8")), 1024, 32, device)


def cases() -> list[Case]:
    """The table's rows in order."""
    kinds = [(batch, base) for batch in (1, 2, 4) for base in BasePrecision]
    limits = [(BasePrecision.INT8, 8e9), (BasePrecision.NF4, 6e9)]
    return [
        *(Case(batch, base, graphs) for batch, base in kinds for graphs in (False, True)),
        *(Case(1, base, graphs, limit) for base, limit in limits for graphs in (False, True)),
    ]


def random_unet(size: Size) -> UNet2DConditionModel:
    """The UNet, made on the device: norms are 1, biases 0, all else normal with a variance of 1 over its inputs."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(size.config).to(size.dtype).requires_grad_(False)
    unet.to_empty(device=size.device)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if weight.dim() < 2:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                weight.normal_(std=weight[0].numel() ** -0.5)
    return unet


def random_batch(size: Size, batch: int) -> BatchTensors:
    """A batch as the caches give it, in page-locked memory if a GPU is to read it."""
    source = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source)

    text = size.config["projection_class_embeddings_input_dim"] - 6 * size.config["addition_time_embed_dim"]
    latents = (batch, size.config["in_channels"], size.side // 8, size.side // 8)
    made = BatchTensors(
        noisy=draw(*latents).to(size.dtype),
        target=draw(*latents),
        t=torch.arange(100, 100 + batch),
        time_ids=torch.tensor([[size.side, size.side, 0, 0, size.side, size.side]] * batch),
        weights=torch.ones(batch),
        hidden=draw(batch, 77, size.config["cross_attention_dim"]).to(size.dtype),
        pooled=draw(batch, text).to(size.dtype),
    )
    return made.pin_memory() if size.device.type == "cuda" else made


def studio_run(size: Size, case: Case) -> Run:
    """A run of the studio's with everything that a step reads, and one batch for ever."""
    recipe = Recipe(network_dim=size.rank, network_alpha=size.rank / 2, text_encoder_lr=0.0, optimizer="AdamW")
    unet = random_unet(size)
    quantize(unet, case.base, size.dtype, size.device)
    adapters = add_adapters(unet, [], recipe)
    unet.to(size.device).train()
    weights = FlatParameters(parameter_groups(adapters, recipe), parameter_layout(recipe), adapters, size.dtype)
    use_plain_attention(unet)
    use_lean_gates(unet)
    optimizer = make_optimizer(recipe, weights.groups)
    inputs = StepBatches(case.batch, [(0, random_batch(size, case.batch))])
    counts = count_steps({(size.side, size.side): case.batch * MANY}, batch_size=case.batch, epochs=1)
    nothing: Any = None
    base: Any = SimpleNamespace(unet=unet, text_encoders=[])
    job: Any = SimpleNamespace(recipe=recipe)
    prefetch: Any = SimpleNamespace(take=lambda step, total, make: inputs)
    return Run(
        job=job,
        folder=Path(),
        counts=counts,
        base=base,
        adapters=adapters,
        blocks=Blocks(unet, repeats_draws=False),
        weights=weights,
        optimizer=optimizer,
        lr_scheduler=make_lr_scheduler(recipe, optimizer, counts.total_steps),
        scaler=torch.amp.GradScaler(size.device.type, enabled=False),
        collator=Collator(
            job,
            nothing,
            counts.steps_per_epoch,
            DDPMScheduler(),
            "epsilon",
            1.0,
            [],
            nothing,
            None,
            size.device,
            size.dtype,
        ),
        device=size.device,
        dtype=size.dtype,
        precision="bf16",
        health=Health(),
        averaged_weights=AveragedWeights(optimizer, weights.flat, 0.0),
        timestep_losses=TimestepLosses(1000),
        prefetch=prefetch,
    )


def fit(run: Run, case: Case, batch: BatchTensors) -> str:
    """Have as many blocks computed twice as the case's limit needs; returns how many, in words."""
    run.blocks.compute_all_twice()
    for _ in range(2):  # the second with the optimizer's state
        reset_peak(run.device)
        train_step(run)
    room = case.limit - RESERVE - peak_bytes(run.device)
    _, costs = run.blocks.measure(
        lambda: batch_losses(run, batch.to(run.device)), [*run.weights.flat, *run.weights.half_copies]
    )
    run.blocks.compute_twice(choose(costs, room))
    return f"{len(run.blocks.twice)} of {len(run.blocks.order)} blocks twice"


def measure(
    size: Size, case: Case, find: Callable[[torch.device], CudaRecorder | None] = find_recorder, steps: int = STEPS
) -> Measured:
    """A case's figures. Raises torch.OutOfMemoryError."""
    run = studio_run(size, case)
    said: list[str] = []
    _, batch = run.prefetch.take(0, 1, partial(lambda step: None)).batches[0]
    if case.limit:
        said.append(fit(run, case, batch))
    for _ in range(WARM_UP):
        train_step(run).read()
    reset_peak(size.device)
    if case.graphs and (recorder := find(size.device)) is not None:
        run.replays = Replays(
            partial(forward_backward, run),
            recorder,
            run.weights,
            lambda batch, this_epoch: MANY,
            lambda event, **values: said.append(values["message"].partition(" latents of ")[2] or values["message"]),
        )
        for _ in range(2 * PROBES + 2):  # until it is known whether the graph is kept
            train_step(run).read()
    elif case.graphs:
        said.append("no CUDA graphs on this device")
    seconds = seconds_of(lambda: train_step(run), size.device, steps)
    return Measured(seconds, peak_bytes(size.device), "; ".join(said))


def measure_peft(size: Size, batch: int, steps: int = STEPS) -> Measured:
    """The loop of diffusers' example: peft's layers in fp32 under autocast, AdamW, a wait for the loss in each step."""
    unet = random_unet(size)
    recipe = Recipe(network_dim=size.rank, network_alpha=size.rank / 2, text_encoder_lr=0.0)
    with torch.device("meta"):
        places = [path for _, path, _ in add_adapters(UNet2DConditionModel.from_config(size.config), [], recipe).layers]
    unet.add_adapter(LoraConfig(r=size.rank, lora_alpha=size.rank // 2, target_modules=places))
    unet.to(size.device).train()
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=1e-2)
    inputs = random_batch(size, batch)

    def step() -> None:
        here = inputs.to(size.device)
        with torch.autocast(size.device.type, size.dtype, enabled=size.dtype != torch.float32):
            added = {"text_embeds": here.pooled, "time_ids": here.time_ids}
            answer = unet(here.noisy, here.t, here.hidden, added_cond_kwargs=added, return_dict=False)[0]
        loss = nn.functional.mse_loss(answer.float(), here.target)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    for _ in range(WARM_UP):
        step()
    reset_peak(size.device)
    return Measured(seconds_of(step, size.device, steps), peak_bytes(size.device))


def seconds_of(step: Callable[[], object], device: torch.device, steps: int) -> float:
    """The median seconds of a step, from its first operation on the device to that of the next; no wait between."""
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
    """TFLOP/s of the fastest of three series of matrix products."""
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    result = torch.empty_like(left)
    best = min(seconds_of(lambda: torch.mm(left, right, out=result), device, times) for _ in range(3))
    return 2 * side**3 / best / 1e12


def reset_peak(device: torch.device) -> None:
    """Forget what the device's memory held at most."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """The most bytes that tensors took since `reset_peak`; 0 where the device does not tell."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


@contextmanager
def cleared(device: torch.device) -> Iterator[None]:
    """Give all memory back afterwards."""
    try:
        yield
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def row(label: str, batch: int, work: Callable[[], Measured], size: Size, top: float, plain: float | None) -> Measured:
    """Measure and print a row; one that fails says why. `plain` are the seconds of peft's loop with this batch."""
    found = Measured(float("nan"), 0)
    with cleared(size.device):
        try:
            found = work()
        except (RuntimeError, ImportError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"{label:<34} missing: {said[:100]}", flush=True)
            return found
    work_done = TFLOP * batch * (size.side / 1024) ** 2
    ratio = f"{plain / found.seconds:5.2f}" if plain is not None else "    -"
    share = 100 * work_done / found.seconds / top
    figures = f"{found.seconds:8.3f} {ratio:>8} {share:10.1f} % {found.peak / 2**30:8.2f} {found.peak / 1e9:8.2f}"
    print(f"{label:<34}{figures}  {found.said}".rstrip(), flush=True)
    return found


def table(
    size: Size,
    chosen: list[Case],
    top: float,
    find: Callable[[torch.device], CudaRecorder | None] = find_recorder,
    steps: int = STEPS,
) -> None:
    """Print the cases, after peft's loop with the same batch."""
    print(f"{'':<34}{'s/step':>8} {'x peft':>8} {'of ceiling':>12} {'GiB':>8} {'GB':>8}")
    plain: dict[int, float] = {}
    for case in chosen:
        if case.batch not in plain:
            work = partial(measure_peft, size, case.batch, steps)
            plain[case.batch] = row(f"batch {case.batch}, peft, bf16", case.batch, work, size, top, None).seconds
        base = "bf16" if case.base is BasePrecision.FULL else case.base.value
        within = f" within {case.limit / 1e9:.0f} GB" if case.limit else ""
        label = f"batch {case.batch}, {base}{within}, {'graphs' if case.graphs else 'eager'}"
        row(label, case.batch, partial(measure, size, case, find, steps), size, top, plain[case.batch])


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
