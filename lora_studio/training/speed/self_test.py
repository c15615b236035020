"""Compare each fast path of a run with the plain one on a device: results within a tolerance, and the time of both.

The fast paths were written and tested on CPUs; whether a GPU's kernels, driver and PyTorch compute the same is tried on
that GPU. Every check runs on any device, on a model with SDXL's layers and few blocks, with random weights.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from lora_studio.device import free_gpu_cache, is_out_of_memory
from lora_studio.lora.inject import add_adapters
from lora_studio.models.pipeline import decode_pixels
from lora_studio.models.quantize import QuantizedLinear
from lora_studio.settings.choices import BasePrecision
from lora_studio.settings.recipe import Recipe
from lora_studio.training.batch_loss import BatchLoss
from lora_studio.training.data.batch import BatchTensors
from lora_studio.training.optim.flat_params import FlatParameters
from lora_studio.training.optim.optimizers import parameter_groups, parameter_layout
from lora_studio.training.speed.attention import use_plain_attention
from lora_studio.training.speed.cuda_graph_capture import CudaGraphCapturer, find_capturer
from lora_studio.training.speed.geglu import use_lean_geglu
from lora_studio.training.speed.gradient_pass import EagerPass
from lora_studio.training.speed.recompute import BlockCheckpointing

REPEATS = 3  # timed calls, after one that is not
LOSS_WEIGHT = 4096.0  # keeps gradients in the range of fp16
CapturerFactory = Callable[[torch.device], CudaGraphCapturer | None]


class FastPath(StrEnum):
    """A way to compute faster or with less memory, with a plain one to fall back to."""

    FUSED_LAYERS = "fused layers"
    CHECKPOINTING = "gradient checkpointing"
    INT8 = "int8 base"
    NF4 = "nf4 base"
    CUDA_GRAPHS = "CUDA graphs"
    HALF_DECODING = "decoding in half precision"

    @property
    def fallback(self) -> str:
        """Return what a run does instead."""
        return _FALLBACKS[self]


_FALLBACKS = {
    FastPath.FUSED_LAYERS: "peft's and diffusers' own layers",
    FastPath.CHECKPOINTING: "no gradient checkpointing",
    FastPath.INT8: "base_precision full",
    FastPath.NF4: "base_precision full",
    FastPath.CUDA_GRAPHS: "eager steps",
    FastPath.HALF_DECODING: "decoding in fp32",
}
# Relative differences that rounding explains; those of fp32 are for what computes in it. A wrong kernel is off by far
# more. Quantized weights differ from the exact ones by their precision (int8 0.6 %, nf4 9 %).
_TOLERANCES = {
    FastPath.FUSED_LAYERS: (0.1, 1e-3),
    FastPath.CHECKPOINTING: (0.01, 1e-4),
    FastPath.INT8: (0.03, 0.02),
    FastPath.NF4: (0.15, 0.15),
    FastPath.CUDA_GRAPHS: (0.01, 1e-4),
    FastPath.HALF_DECODING: (0.1, 1e-4),
}


class Comparison(BaseModel):
    """The result of a check: the relative L2 difference, and the seconds of both paths. `error` is what it raised."""

    model_config = ConfigDict(frozen=True)

    path: FastPath
    difference: float | None = None
    tolerance: float
    seconds: float | None = None
    plain_seconds: float | None = None
    error: str = ""

    @property
    def works(self) -> bool:
        """True if the fast path computes the same; NaN is a difference."""
        return not self.error and self.difference is not None and self.difference <= self.tolerance

    @property
    def summary(self) -> str:
        """The figures, or the error, and what a run does instead of a path that does not work."""
        if self.difference is None or self.seconds is None or self.plain_seconds is None:
            return f"{self.error}; runs use {self.path.fallback}"
        figures = (
            f"differs by {self.difference:.2%} (at most {self.tolerance:.2%}), {1000 * self.seconds:.1f} ms, "
            f"plain {1000 * self.plain_seconds:.1f} ms"
        )
        return figures if self.works else f"{figures}; runs use {self.path.fallback}"


@dataclass(frozen=True)
class SelfTestSize:
    """The size of the models: changes of SDXL's configurations of UNet and VAE, image side in px, layer width."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    side: int
    width: int


REAL_WIDTH = SelfTestSize(
    unet={
        "block_out_channels": (320, 640),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (5, 10),
    },
    vae={"block_out_channels": (128, 256, 512, 512)},
    side=512,
    width=1280,
)


def self_test(
    device: torch.device,
    dtype: torch.dtype,
    *,
    paths: Sequence[FastPath] = tuple(FastPath),
    size: SelfTestSize = REAL_WIDTH,
    find_capturer: CapturerFactory = find_capturer,
) -> Iterator[Comparison]:
    """Yield the comparison of each fast path that there is on a device, in the precision of its runs.

    A path that runs out of memory is left out: that says nothing about its results.
    """
    for path in paths:
        tolerance = _TOLERANCES[path][dtype == torch.float32]
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                values = _run_check(path, device, dtype, size, find_capturer)
        except Exception as error:
            if not is_out_of_memory(error):
                lines = str(error).strip().splitlines()
                message = f"{type(error).__name__}: {lines[0] if lines else ''}"
                yield Comparison(path=path, tolerance=tolerance, error=message[:200])
        else:
            if values is not None:
                yield values.compare(path, tolerance)
        finally:
            free_gpu_cache()


def relative_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest relative L2 difference of pairs of tensors; infinite if a value is not finite."""
    largest = 0.0
    for one, two in zip(found, expected, strict=True):
        one, two = one.detach().double().cpu(), two.detach().double().cpu()
        value = float((one - two).norm() / two.norm().clamp(min=1e-30))
        largest = max(largest, math.inf if math.isnan(value) else value)
    return largest


@dataclass(frozen=True)
class _Outcome:
    """What a path computed, on the CPU, and the median seconds that it took."""

    tensors: list[Tensor]
    seconds: float


@dataclass(frozen=True)
class _Outcomes:
    """What the fast and the plain path computed. `reference` is the exact result, if it is not the plain one."""

    fast: _Outcome
    plain: _Outcome
    reference: list[Tensor] | None = None

    def compare(self, path: FastPath, tolerance: float) -> Comparison:
        """Compare with the reference; the fast path may differ from it by twice as much as the plain one."""
        reference = self.plain.tensors if self.reference is None else self.reference
        return Comparison(
            path=path,
            difference=relative_difference(self.fast.tensors, reference),
            tolerance=max(tolerance, 2 * relative_difference(self.plain.tensors, reference)),
            seconds=self.fast.seconds,
            plain_seconds=self.plain.seconds,
        )


def _run_check(
    path: FastPath, device: torch.device, dtype: torch.dtype, size: SelfTestSize, find_capturer: CapturerFactory
) -> _Outcomes | None:
    """Return what the fast and the plain path computed; None if the device has no such fast path."""
    match path:
        case FastPath.FUSED_LAYERS:
            return _compare_fused(device, dtype, size)
        case FastPath.CHECKPOINTING:
            return _compare_checkpointing(device, dtype, size)
        case FastPath.INT8:
            return _compare_quantized(BasePrecision.INT8, device, dtype, size)
        case FastPath.NF4:
            return _compare_quantized(BasePrecision.NF4, device, dtype, size)
        case FastPath.CUDA_GRAPHS:
            capturer = find_capturer(device)
            return None if capturer is None else _compare_graph(capturer, device, dtype, size)
        case FastPath.HALF_DECODING:
            return None if dtype == torch.float32 else _compare_decoding(device, dtype, size)


@dataclass(frozen=True)
class _Gradients:
    """A UNet with a LoRA, and what computes its gradients of a batch."""

    unet: UNet2DConditionModel
    weights: FlatParameters
    compute: EagerPass

    def __call__(self, batch: BatchTensors) -> list[Tensor]:
        """Return the losses of a batch and the flat gradient of the LoRA."""
        self.weights.zero_gradients()
        return [self.compute(batch), *self.weights.gradients]


def _make_unet(size: SelfTestSize, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """Return a UNet with random weights [out, in...] of variance 1 / inputs."""
    config = dict(UNet2DConditionModel.load_config(_sdxl_config("unet"))) | dict(size.unet)
    unet: UNet2DConditionModel = _randomised(partial(UNet2DConditionModel.from_config, config), device, dtype)
    return unet


def _randomised(make: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        model = nn.Module.to(make(), dtype)
    model.to_empty(device=device).requires_grad_(False)
    source = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                weight.normal_(std=weight[0].numel() ** -0.5, generator=source)
    return model


def _sdxl_config(part: str) -> str:
    from lora_studio.models.locate import SDXL_CONFIG

    return str(SDXL_CONFIG / part)


def _gradients(unet: UNet2DConditionModel, dtype: torch.dtype, *, fuse: bool) -> _Gradients:
    """Add a LoRA to the UNet, with the layers of a run or, without `fuse`, those of peft and diffusers."""
    device, module = unet.device, cast("nn.Module", unet)
    recipe = Recipe(network_dim=16, network_alpha=16, text_encoder_lr=0.0, optimizer="AdamW")
    adapters = add_adapters(unet, [], recipe)
    module.to(device).train()
    source = torch.Generator().manual_seed(0)
    for weight in adapters.parameters("unet"):
        weight.data.copy_(torch.randn(weight.shape, generator=source) * weight[0].numel() ** -0.5)
    weights = FlatParameters(parameter_groups(adapters, recipe), parameter_layout(recipe), adapters, dtype, fuse=fuse)
    if fuse:
        use_plain_attention(unet)
        use_lean_geglu(unet)
    base: Any = SimpleNamespace(unet=unet, text_encoders=[])
    batch_loss = BatchLoss(base, recipe, device, dtype, weights.half_only)
    return _Gradients(unet, weights, EagerPass(batch_loss, weights, torch.amp.GradScaler(device.type, enabled=False)))


def _make_batch(
    unet: UNet2DConditionModel, size: SelfTestSize, dtype: torch.dtype, device: torch.device
) -> BatchTensors:
    """Return a batch of two random samples with the conditioning of SDXL."""
    source = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source)

    config, side = unet.config, size.side
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    latents = (2, config["in_channels"], side // 8, side // 8)
    return BatchTensors(
        noisy=draw(*latents).to(dtype),
        target=draw(*latents),
        t=torch.tensor([300, 700]),
        time_ids=torch.tensor([[side, side, 0, 0, side, side]] * 2),
        weights=torch.full((2,), LOSS_WEIGHT),
        sample_count=torch.tensor(2.0),
        hidden=draw(2, 77, config["cross_attention_dim"]).to(dtype),
        pooled=draw(2, pooled).to(dtype),
    ).to(device)


def _compare_fused(device: torch.device, dtype: torch.dtype, size: SelfTestSize) -> _Outcomes:
    """Compare the gradients of fused and of plain layers with those of plain layers in fp32."""
    unet = _make_unet(size, device, dtype)

    def outcome(kind: torch.dtype, *, fuse: bool) -> _Outcome:
        gradients = _gradients(nn.Module.to(copy.deepcopy(unet), kind), kind, fuse=fuse)
        batch = _make_batch(unet, size, kind, device)
        return _measure(lambda: gradients(batch), device)

    fast, plain = (outcome(dtype, fuse=fuse) for fuse in (True, False))
    return _Outcomes(fast, plain, None if dtype == torch.float32 else outcome(torch.float32, fuse=False).tensors)


def _compare_checkpointing(device: torch.device, dtype: torch.dtype, size: SelfTestSize) -> _Outcomes:
    unet = _make_unet(size, device, dtype)
    gradients, batch = _gradients(unet, dtype, fuse=True), _make_batch(unet, size, dtype, device)
    plain = _measure(lambda: gradients(batch), device)
    BlockCheckpointing(unet, preserve_rng_state=False).recompute_all()
    return _Outcomes(_measure(lambda: gradients(batch), device), plain)


def _compare_quantized(
    precision: BasePrecision, device: torch.device, dtype: torch.dtype, size: SelfTestSize
) -> _Outcomes:
    """Compare output and input gradient of a quantized layer with those of the exact one."""
    layer = nn.Linear(size.width, 4 * size.width).to(device, dtype).requires_grad_(False)
    quantized = QuantizedLinear(layer, precision, dtype, device)
    rows = torch.randn(256, size.width).to(device, dtype).requires_grad_()
    signs = torch.randn(256, 4 * size.width).sign().to(device, dtype)

    def both_passes(module: nn.Module) -> list[Tensor]:
        output: Tensor = module(rows)
        return [output, *torch.autograd.grad((output * signs).sum(), rows)]

    return _Outcomes(_measure(lambda: both_passes(quantized), device), _measure(lambda: both_passes(layer), device))


def _compare_graph(
    capturer: CudaGraphCapturer, device: torch.device, dtype: torch.dtype, size: SelfTestSize
) -> _Outcomes:
    unet = _make_unet(size, device, dtype)
    gradients, batch = _gradients(unet, dtype, fuse=True), _make_batch(unet, size, dtype, device)
    plain = _measure(lambda: gradients(batch), device)
    work = partial(gradients.compute, batch)
    capturer.warm_up(work)
    captured = capturer.capture(work)

    def replay() -> list[Tensor]:
        gradients.weights.zero_gradients()
        captured.replay()
        return [captured.output, *gradients.weights.gradients]

    try:
        return _Outcomes(_measure(replay, device), plain)
    finally:
        capturer.release([captured])


@torch.no_grad()
def _compare_decoding(device: torch.device, dtype: torch.dtype, size: SelfTestSize) -> _Outcomes:
    config = dict(AutoencoderKL.load_config(_sdxl_config("vae"))) | dict(size.vae)
    exact = _randomised(partial(AutoencoderKL.from_config, config), device, torch.float32)
    half = nn.Module.to(copy.deepcopy(exact), dtype)
    latents = torch.randn(1, 4, size.side // 8, size.side // 8).to(device)
    return _Outcomes(
        _measure(lambda: [decode_pixels(half, latents)], device),
        _measure(lambda: [decode_pixels(exact, latents)], device),
    )


def _measure(compute: Callable[[], list[Tensor]], device: torch.device) -> _Outcome:
    """Return what `compute` returns, and the median seconds of its later calls."""
    results = [tensor.detach().to("cpu", copy=True) for tensor in compute()]
    times = []
    for _ in range(REPEATS):
        _synchronise(device)
        began = time.perf_counter()
        compute()
        _synchronise(device)
        times.append(time.perf_counter() - began)
    return _Outcome(results, statistics.median(times))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
