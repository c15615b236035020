"""A LoRA file on a pipeline: loaded once, then used at any strength without touching the base's weights.

diffusers itself reads LoRA and, from its own form, DoRA; LoHa and LoKr it does not. So every kind is built here from
peft's layers and filled from the file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLPipeline
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lora_studio.lora.header import LoraFile
from lora_studio.lora.inject import inject
from lora_studio.lora.layers import find_target_layers
from lora_studio.lora.read import LayerWeights, base_mismatch_error, delta_weight, read_layers
from lora_studio.lora.shapes import DimAlpha
from lora_studio.settings.choices import NetworkType

ADAPTER = "studio"


@dataclass(frozen=True)
class Adapter:
    """A LoRA that lies on a pipeline.

    `layers` are the changed ones, each with its alpha / dim; `missing` are those of the file that the base has not.
    """

    layers: list[tuple[BaseTunerLayer, float]]
    missing: list[str]

    @property
    def matched(self) -> int:
        """How many layers of the file were found in the base."""
        return len(self.layers)

    @property
    def total(self) -> int:
        """How many layers the file has."""
        return len(self.layers) + len(self.missing)

    def set_strength(self, strength: float) -> None:
        """Add `strength` times the LoRA's change of the weights; 0 switches it off, which leaves exactly the base."""
        for layer, scale in self.layers:
            layer.enable_adapters(strength != 0)
            layer.requires_grad_(False)
            variant = getattr(layer, "lora_variant", {}).get(ADAPTER)
            if isinstance(variant, DoraVariant):
                variant.strength = strength
            else:
                layer.scaling[ADAPTER] = strength * scale


class DoraVariant(LoraVariant):
    """A DoRA at any strength: W + strength * (W' - W), where W' is W + D with the lengths that the file gives.

    peft's own has W + strength * D instead, and lengths of outputs only. `factors` are what those rows (`axis` 0) or
    columns (1) of W + D are multiplied by; they are computed once.
    """

    def __init__(self, factors: Tensor, axis: int) -> None:
        self.factors = factors
        self.axis = axis
        self.strength = 1.0

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: object) -> Tensor:
        """The layer's output, from its input and the base layer's output."""
        base, scale = module.get_base_layer(), module.scaling[active_adapter]
        down, up = module.lora_A[active_adapter], module.lora_B[active_adapter]
        channels = (1, -1, 1, 1) if isinstance(base, nn.Conv2d) else (-1,)
        factors = self.factors.view(channels)
        if self.axis == 0:
            bare = result if base.bias is None else result - base.bias.view(channels)
            change = (factors - 1) * bare + factors * up(down(x)) * scale
        else:
            stretched = (factors * x).to(x.dtype)
            change = base(stretched) - result + up(down(stretched)) * scale
        drawn: Tensor = result + (change if self.strength == 1 else self.strength * change)
        return drawn


@contextmanager
def apply_lora(pipe: StableDiffusionXLPipeline, lora: LoraFile) -> Iterator[Adapter]:
    """Put a LoRA on the pipeline, and take it off at the end.

    Raises InputError if the weights are not finite, do not fit the base, or none of the file's layers is in the base.
    """
    models = {"unet": pipe.unet, "te1": pipe.text_encoder, "te2": pipe.text_encoder_2}
    found, missing = read_layers(lora, find_target_layers(pipe.unet, [pipe.text_encoder, pipe.text_encoder_2]))
    if not found:
        raise base_mismatch_error(lora, f"none of its {len(missing)} layers is there")
    try:
        layers = _put_on(models, found)
        adapter = Adapter(layers, missing)
        adapter.set_strength(1.0)
        yield adapter
    finally:
        for model in models.values():
            _take_off(model)


def _put_on(models: Mapping[str, nn.Module], found: list[LayerWeights]) -> list[tuple[BaseTunerLayer, float]]:
    """Wrap the layers and fill them, in the base's dtype; returns each with its alpha / dim."""
    ready = [_multiplied_out(weights, models) for weights in found]
    kind: NetworkType
    groups: dict[tuple[str, NetworkType], dict[str, DimAlpha]] = defaultdict(dict)
    for weights in ready:
        target = weights.target
        kind = NetworkType.LORA if weights.kind is NetworkType.DORA else weights.kind
        groups[target.model, kind][target.path] = DimAlpha(weights.dim, weights.alpha)
    with torch.random.fork_rng(devices=[]):
        for (model, kind), sizes in groups.items():
            inject(models[model], kind, sizes, ADAPTER, inference=True)
            del models[model].peft_config
    layers = []
    for weights in ready:
        layer = models[weights.target.model].get_submodule(weights.target.path)
        _fill(layer, weights)
        layers.append((layer, weights.alpha / weights.dim))
    return layers


@torch.no_grad()
def _fill(layer: BaseTunerLayer, weights: LayerWeights) -> None:
    like = layer.get_base_layer().weight
    tensors = {name: tensor.to(like.device, like.dtype) for name, tensor in weights.tensors.items()}
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
        factors = _factors(like, change.view(like.shape), weights)
        layer.lora_variant[ADAPTER] = DoraVariant(factors, weights.magnitude_axis)


def _factors(base: Tensor, change: Tensor, weights: LayerWeights) -> Tensor:
    """What the rows (or columns) of base + change are multiplied by, so that they have the file's lengths; fp32."""
    assert weights.magnitude is not None
    whole = base.float() + change
    lengths = (whole.transpose(0, 1) if weights.magnitude_axis else whole).flatten(1).norm(dim=1)
    factors: Tensor = weights.magnitude.to(base.device, torch.float32) / lengths
    return factors


@torch.no_grad()
def _multiplied_out(weights: LayerWeights, models: Mapping[str, nn.Module]) -> LayerWeights:
    """A LoHa or LoKr with lengths (dora_scale) as the whole change of the weight: a LoKr whose small matrix is 1."""
    if weights.magnitude is None or weights.kind is NetworkType.DORA:
        return weights
    base = models[weights.target.model].get_parameter(f"{weights.target.path}.weight").detach()
    change = delta_weight(weights).to(base.device).view(base.shape)
    shape = [1] * base.dim()
    shape[weights.magnitude_axis] = -1
    whole = (base.float() + change) * _factors(base, change, weights).view(shape)
    tensors = {"lokr_w1": torch.ones(1, 1), "lokr_w2": whole - base.float()}
    return LayerWeights(weights.target, NetworkType.LOKR, 1, 1.0, tensors)


def _take_off(model: nn.Module) -> None:
    """Put the base's own layers back."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
