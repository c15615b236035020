"""Apply a LoRA file to a pipeline: loaded once, then used at any strength without changing the base's weights.

diffusers loads LoRA and, in its own format, DoRA, but neither LoHa nor LoKr. Therefore every type is built here from
peft's layers, and its weights are copied from the file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn

from lora_studio.lora.header import LoraFile
from lora_studio.lora.inject import AdaptedLayer, inject
from lora_studio.lora.layers import find_readable_layers
from lora_studio.lora.read import LayerWeights, base_mismatch_error, delta_weight, read_layers, read_vectors
from lora_studio.lora.shapes import DimAlpha, DoraAxis
from lora_studio.settings.choices import NetworkType

ADAPTER = "studio"


@dataclass(frozen=True)
class Adapter:
    """A LoRA applied to a pipeline.

    `layers` are the changed layers, each with its alpha / dim; `vectors` the changed biases and norms; `missing` are
    layers, biases and norms of the file that the base lacks.
    """

    layers: list[tuple[AdaptedLayer, float]]
    missing: list[str]
    vectors: list[ChangedVector]

    @property
    def matched(self) -> int:
        """The number of layers, biases and norms of the file that the base has."""
        return len(self.layers) + len(self.vectors)

    @property
    def total(self) -> int:
        """The number of layers, biases and norms in the file."""
        return self.matched + len(self.missing)

    def set_strength(self, strength: float) -> None:
        """Use the LoRA at `strength`; 0 disables it, so that the output is exactly the base's."""
        for layer, scale in self.layers:
            layer.enable_adapters(strength != 0)
            layer.set_requires_grad(ADAPTER, requires_grad=False)
            variant = getattr(layer, "lora_variant", {}).get(ADAPTER)
            if isinstance(variant, DoraVariant):
                variant.strength = strength
            else:
                layer.scaling[ADAPTER] = strength * scale
        for vector in self.vectors:
            vector.set_strength(strength)


@dataclass(frozen=True)
class ChangedVector:
    """A bias or a norm's weight of the base, its own values, and what a LoRA adds to them at strength 1."""

    parameter: nn.Parameter
    base: Tensor
    delta: Tensor

    def set_strength(self, strength: float) -> None:
        """Set the parameter to base + strength * delta, in its dtype; to the base's own values at strength 0."""
        value = self.base.float() + strength * self.delta if strength else self.base
        self.parameter.data.copy_(value)


class DoraVariant(LoraVariant):
    """DoRA at any strength: W + strength * (W' - W), where W' is W + D with its norms set to the file's magnitudes.

    W is the base's weight, D the low-rank change. peft's own variant computes W + strength * D before normalising, and
    has magnitudes per output only. `factors` scale the rows or columns of W + D; they are computed once.
    """

    def __init__(self, factors: Tensor, axis: DoraAxis) -> None:
        self.factors = factors
        self.axis = axis
        self.strength = 1.0

    def forward(  # type: ignore[override]
        self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: object
    ) -> Tensor:
        """Return the layer's output from its input `x` and the base layer's output `result`."""
        base, scale = module.get_base_layer(), module.scaling[active_adapter]
        down, up = module.lora_A[active_adapter], module.lora_B[active_adapter]
        channels = (1, -1, 1, 1) if isinstance(base, nn.Conv2d) else (-1,)
        factors = self.factors.to(x.device).view(channels)  # text encoders change their device
        if self.axis is DoraAxis.OUTPUT:
            bias: Tensor | None = getattr(base, "bias", None)
            product = result if bias is None else result - bias.view(channels)
            change = (factors - 1) * product + factors * up(down(x)) * scale
        else:
            scaled = (factors * x).to(x.dtype)
            change = base(scaled) - result + up(down(scaled)) * scale
        output: Tensor = result + (change if self.strength == 1 else self.strength * change)
        return output


@contextmanager
def apply_lora(pipe: StableDiffusionXLPipeline, lora: LoraFile) -> Iterator[Adapter]:
    """Apply a LoRA to the pipeline inside the block, and remove it at the end.

    Raises InputError if the weights are not finite, do not match the base, or the base has none of the file's layers.
    """
    models = {"unet": pipe.unet, "te1": pipe.text_encoder, "te2": pipe.text_encoder_2}
    found, missing = read_layers(lora, find_readable_layers(pipe.unet, [pipe.text_encoder, pipe.text_encoder_2]))
    deltas, absent = read_vectors(lora, models)
    if not found and not deltas:
        raise base_mismatch_error(lora, f"none of its {len(missing) + len(absent)} layers is there")
    vectors = [_changed_vector(models[delta.model].get_parameter(delta.path), delta.delta) for delta in deltas]
    try:
        adapter = Adapter(_add_layers(models, found), [*missing, *absent], vectors)
        adapter.set_strength(1.0)
        yield adapter
    finally:
        for vector in vectors:
            vector.set_strength(0)
        for model in models.values():
            _remove_layers(model)


def _changed_vector(parameter: nn.Parameter, delta: Tensor) -> ChangedVector:
    return ChangedVector(parameter, parameter.detach().cpu().clone(), delta.float().cpu())


def _add_layers(models: Mapping[str, nn.Module], found: list[LayerWeights]) -> list[tuple[AdaptedLayer, float]]:
    """Replace layers by peft's, fill them in the base's dtype, and return each with its alpha / dim."""
    prepared = [_with_full_matrix(weights, models) for weights in found]
    kind: NetworkType
    groups: dict[tuple[str, NetworkType], dict[str, DimAlpha]] = defaultdict(dict)
    for weights in prepared:
        target = weights.target
        kind = NetworkType.LORA if weights.network_type is NetworkType.DORA else weights.network_type
        groups[target.model, kind][target.path] = DimAlpha(weights.dim, weights.alpha)
    with torch.random.fork_rng(devices=[]):
        for (model, kind), sizes in groups.items():
            inject(models[model], kind, sizes, ADAPTER, inference=True)
            del models[model].peft_config
    layers = []
    for weights in prepared:
        layer = cast("AdaptedLayer", models[weights.target.model].get_submodule(weights.target.path))
        _fill(layer, weights)
        layers.append((layer, weights.alpha / weights.dim))
    return layers


@torch.no_grad()
def _fill(layer: AdaptedLayer, weights: LayerWeights) -> None:
    base = layer.get_base_weight()
    tensors = {name: tensor.to(base.device, base.dtype) for name, tensor in weights.tensors.items()}
    if not isinstance(layer, LoraLayer):
        for name in layer.adapter_layer_names:
            part = getattr(layer, name)
            if ADAPTER in part:
                del part[ADAPTER]
            if name in tensors:
                part[ADAPTER] = nn.Parameter(tensors[name], requires_grad=False)
        return
    for part, name in ((layer.lora_A, "lora_down.weight"), (layer.lora_B, "lora_up.weight")):
        part[ADAPTER].weight = nn.Parameter(tensors[name], requires_grad=False)
    if weights.magnitude is not None:
        down, up = (tensors[name].float().flatten(1) for name in ("lora_down.weight", "lora_up.weight"))
        change = weights.alpha / weights.dim * (up @ down)
        factors = _factors(base, change.view(base.shape), weights)
        layer.lora_variant[ADAPTER] = DoraVariant(factors, weights.magnitude_axis)


def _factors(base: Tensor, change: Tensor, weights: LayerWeights) -> Tensor:
    """Return the factors that give the rows (or columns) of base + change the norms in the file; fp32."""
    assert weights.magnitude is not None
    whole = base.float() + change
    norms = (whole.transpose(0, 1) if weights.magnitude_axis else whole).flatten(1).norm(dim=1)
    factors: Tensor = weights.magnitude.to(base.device, torch.float32) / norms
    return factors


@torch.no_grad()
def _with_full_matrix(weights: LayerWeights, models: Mapping[str, nn.Module]) -> LayerWeights:
    """Return a LoHa or LoKr with magnitudes, or an IA3, as a LoKr: its small matrix is 1, the large one the change."""
    if weights.base_scale is None and (weights.magnitude is None or weights.network_type is NetworkType.DORA):
        return weights
    base = models[weights.target.model].get_parameter(f"{weights.target.path}.weight").detach()
    if weights.base_scale is not None:
        change = base.float() * weights.base_scale.to(base.device)
    else:
        change = delta_weight(weights).to(base.device).view(base.shape)
        shape = [1] * base.dim()
        shape[weights.magnitude_axis] = -1
        change = (base.float() + change) * _factors(base, change, weights).view(shape) - base.float()
    tensors = {"lokr_w1": torch.ones(1, 1), "lokr_w2": change}
    return LayerWeights(weights.target, NetworkType.LOKR, 1, 1.0, tensors)


def _remove_layers(model: nn.Module) -> None:
    """Restore the base's own layers."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, AdaptedLayer):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
