"""Apply LoRA files to a pipeline: loaded once, then merged into the base's weights at any strength.

A LoRA changes a weight W by D, whatever its network type: DoRA and IA3, too, are W + strength * (W' - W). So every
strength is one pass over the changed weights, after which the UNet is as fast as without a LoRA, and several LoRAs add
up. The base's own weights are kept, so that strength 0 and removal are exact. A quantized weight is not replaced: its
layer adds the change whenever it dequantizes the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import Tensor, nn
from torch.nn import functional

from lora_studio.device import free_gpu_bytes
from lora_studio.lora.deltas import delta_matrix
from lora_studio.lora.header import LoraFile
from lora_studio.lora.layers import find_readable_layers
from lora_studio.lora.read import (
    LayerWeights,
    VectorDelta,
    base_mismatch_error,
    delta_weight,
    read_layers,
    read_vectors,
)
from lora_studio.models.quantize import QuantizedLinear
from lora_studio.settings.choices import NetworkType

UNET = "unet"
MAIN_MEMORY = torch.device("cpu")
SPARE_BYTES = 2**30  # left free on the GPU for the UNet's passes if the base's weights are kept there


class Strength(NamedTuple):
    """The strength of a LoRA in the UNet and in the text encoders."""

    unet: float
    text_encoder: float

    def of(self, model: str) -> float:
        """Return the strength in a model, by kohya's name."""
        return self.unet if model == UNET else self.text_encoder


@dataclass(frozen=True)
class Adapter:
    """A LoRA applied to a pipeline.

    `matched` is the number of its layers, biases and norms that the base has, `missing` the others.
    """

    stack: AdapterStack
    matched: int
    missing: list[str]

    @property
    def total(self) -> int:
        """The number of layers, biases and norms in the file."""
        return self.matched + len(self.missing)

    def set_strength(self, strength: float) -> None:
        """Use this LoRA alone, at `strength`; 0 gives exactly the base's output."""
        strengths = [Strength(strength, strength) if other is self else Strength(0, 0) for other in self.stack.adapters]
        self.stack.set_strengths(strengths)


@dataclass(frozen=True)
class AdapterStack:
    """Several LoRAs applied to a pipeline; `changes` are the changed parameters with the contribution of each LoRA."""

    adapters: list[Adapter] = field(default_factory=list)
    changes: dict[tuple[str, str], _Change] = field(default_factory=dict)

    @torch.no_grad()
    def set_strengths(self, strengths: Sequence[Strength]) -> None:
        """Use each LoRA at its strength; raise ValueError if there is not one for each."""
        if len(strengths) != len(self.adapters):
            raise ValueError(f"{len(strengths)} strengths for {len(self.adapters)} LoRAs")
        for number, ((model, _), change) in enumerate(self.changes.items()):
            change.set_strengths([strength.of(model) for strength in strengths], seed=number)

    @torch.no_grad()
    def restore(self) -> None:
        """Give all parameters the base's own values."""
        for change in self.changes.values():
            change.restore()


@contextmanager
def apply_lora(pipe: StableDiffusionXLPipeline, lora: LoraFile) -> Iterator[Adapter]:
    """Apply a LoRA to the pipeline at strength 1 inside the block, and remove it at the end; see `apply_loras`."""
    with apply_loras(pipe, [lora]) as stack:
        yield stack.adapters[0]


@contextmanager
def apply_loras(pipe: StableDiffusionXLPipeline, loras: Sequence[LoraFile]) -> Iterator[AdapterStack]:
    """Apply LoRAs to the pipeline at strength 1 inside the block, and remove them at the end.

    Raises InputError if the weights are not finite, do not match the base, or the base has none of a file's layers.
    """
    stack = AdapterStack()
    models: dict[str, nn.Module] = {UNET: pipe.unet, "te1": pipe.text_encoder, "te2": pipe.text_encoder_2}
    targets = find_readable_layers(pipe.unet, [pipe.text_encoder, pipe.text_encoder_2])
    try:
        for number, lora in enumerate(loras):
            found, missing = read_layers(lora, targets)
            vectors, absent = read_vectors(lora, models)
            if not found and not vectors:
                raise base_mismatch_error(lora, f"none of its {len(missing) + len(absent)} layers is there")
            for weights in found:
                name = (weights.target.model, f"{weights.target.path}.weight")
                _change_of(stack, models, name).add(number, weights)
            for vector in vectors:
                _change_of(stack, models, (vector.model, vector.path)).add(number, vector)
            stack.adapters.append(Adapter(stack, len(found) + len(vectors), [*missing, *absent]))
        _keep_originals(stack.changes)
        stack.set_strengths([Strength(1, 1)] * len(loras))
        yield stack
    finally:
        stack.restore()


def _change_of(stack: AdapterStack, models: Mapping[str, nn.Module], name: tuple[str, str]) -> _Change:
    """Return the change of a parameter by model and path, which is new for the first LoRA that has it."""
    if name not in stack.changes:
        model, path = name
        parent, _, kind = path.rpartition(".")
        layer = models[model].get_submodule(parent)
        if kind == "weight" and isinstance(layer, QuantizedLinear):
            stack.changes[name] = _QuantizedChange(models[model], parent, layer)
        else:
            stack.changes[name] = _MergedChange(models[model].get_parameter(path))
    return stack.changes[name]


def _keep_originals(changes: Mapping[tuple[str, str], _Change]) -> None:
    """Copy the base's weights: on their GPU if it has the memory for all of them, else in main memory."""
    merged = [change for change in changes.values() if isinstance(change, _MergedChange)]
    needed = sum(change.parameter.nbytes for change in merged)
    free = {device: free_gpu_bytes(device) for device in {change.parameter.device for change in merged}}
    for change in merged:
        room = free[change.parameter.device]
        has_room = room is None or room > needed + SPARE_BYTES
        change.original = copy_weight(change.parameter, change.parameter.device if has_room else MAIN_MEMORY)


def copy_weight(parameter: nn.Parameter, device: torch.device) -> Tensor:
    """Return a copy of a parameter on a device."""
    return parameter.detach().to(device, copy=True)


class _Change:
    """The changes of one parameter by each LoRA, by its number."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, LayerWeights | VectorDelta]] = []

    def add(self, number: int, part: LayerWeights | VectorDelta) -> None:
        """Add what a LoRA changes."""
        self.parts.append((number, part))

    def set_strengths(self, strengths: Sequence[float], *, seed: int) -> None:
        """Use each LoRA at its strength; `seed` is that of the rounding."""
        raise NotImplementedError

    def restore(self) -> None:
        """Use the base alone."""
        raise NotImplementedError

    def changed(self, base: Tensor, strengths: Sequence[float]) -> Tensor:
        """Return the base's values plus the change of each LoRA times its strength, fp32."""
        original = base.float()
        total = original
        for number, part in self.parts:
            if strengths[number]:
                total = total + strengths[number] * _delta(part, original)
        return total


class _MergedChange(_Change):
    """A parameter that has the changed values, and the base's own beside it."""

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__()
        self.parameter = parameter
        self.original: Tensor | None = None
        self.is_changed = False

    def set_strengths(self, strengths: Sequence[float], *, seed: int) -> None:
        if self.original is None or not any(strengths[number] for number, _ in self.parts):
            return self.restore()
        total = self.changed(self.original.to(self.parameter.device), strengths)
        self.parameter.data.copy_(_rounded(total, self.parameter.dtype, seed))
        self.is_changed = True
        return None

    def restore(self) -> None:
        if self.original is not None and self.is_changed:
            self.parameter.data.copy_(self.original)
            self.is_changed = False


class _QuantizedChange(_Change):
    """A quantized layer, which is replaced while a LoRA changes it."""

    def __init__(self, model: nn.Module, path: str, layer: QuantizedLinear) -> None:
        super().__init__()
        self.parent = model.get_submodule(path.rpartition(".")[0])
        self.name = path.rpartition(".")[2]
        self.layer = layer

    def add(self, number: int, part: LayerWeights | VectorDelta) -> None:
        assert isinstance(part, LayerWeights)
        super().add(number, _on_device(part, self.layer.packed.device))

    def set_strengths(self, strengths: Sequence[float], *, seed: int) -> None:
        used = any(strengths[number] for number, _ in self.parts)
        setattr(self.parent, self.name, _ChangedQuantizedLinear(self, strengths) if used else self.layer)

    def restore(self) -> None:
        setattr(self.parent, self.name, self.layer)


class _ChangedQuantizedLinear(nn.Module):
    """A quantized linear layer with LoRAs, whose change is added to the dequantized weight."""

    def __init__(self, change: _QuantizedChange, strengths: Sequence[float]) -> None:
        super().__init__()
        self.layer = change.layer
        self.change = change
        self.strengths = strengths

    def forward(self, input: Tensor) -> Tensor:
        """Return x (W + D)' + b, [..., in] -> [..., out], in the layer's dtype (' is transpose)."""
        dtype = self.layer.compute_dtype
        weight = self.change.changed(self.layer.weight, self.strengths).to(dtype)
        bias = None if self.layer.bias is None else self.layer.bias.to(dtype)
        return functional.linear(input.to(dtype), weight, bias)


def _delta(part: LayerWeights | VectorDelta, base: Tensor) -> Tensor:
    """Return a LoRA's change of a parameter at strength 1 in the shape of `base`, the base's values in fp32."""
    if isinstance(part, VectorDelta):
        return part.delta.to(base.device, torch.float32).view(base.shape)
    part = _on_device(part, base.device)
    if part.base_scale is not None:
        return base * part.base_scale
    if part.network_type in (NetworkType.LORA, NetworkType.DORA):
        matrix = delta_matrix(part.tensors, part.alpha)
    else:
        matrix = delta_weight(part)
    delta = matrix.view(base.shape)
    if part.magnitude is None:
        return delta
    whole = base + delta
    norms = (whole.transpose(0, 1) if part.magnitude_axis else whole).flatten(1).norm(dim=1)
    shape = [1] * base.dim()
    shape[part.magnitude_axis] = -1
    scaled: Tensor = whole * (part.magnitude.float() / norms).view(shape)
    return scaled - base


def _on_device(part: LayerWeights, device: torch.device) -> LayerWeights:
    """Return a layer's weights with all tensors on a device."""
    tensors = {name: tensor.to(device) for name, tensor in part.tensors.items()}
    magnitude = None if part.magnitude is None else part.magnitude.to(device)
    scale = None if part.base_scale is None else part.base_scale.to(device)
    return replace(part, tensors=tensors, magnitude=magnitude, base_scale=scale)


def _rounded(values: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """Return fp32 values in a dtype; in bf16 rounded up or down at random, in proportion to the distance.

    The base's weights are bf16 numbers already, so that rounding to the nearest would lose every change below half a
    step, 1/512 of the weight, instead of adding it in the mean (stochastic rounding, Gupta et al. 2015,
    arXiv:1502.02551). The same seed gives the same values on the same device.
    """
    if dtype is not torch.bfloat16 or values.device.type == "meta":
        return values.to(dtype)
    generator = torch.Generator(values.device).manual_seed(seed)
    noise = torch.randint(0, 1 << 16, values.shape, generator=generator, device=values.device, dtype=torch.int32)
    return ((values.contiguous().view(torch.int32) + noise) & -65536).view(torch.float32).to(dtype)
