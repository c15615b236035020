"""Inject adapters into the UNet and the text encoders, in the layers that kohya's trainer and LyCORIS adapt.

An adapted layer computes with W + (alpha / dim) * D; `lora_studio.lora.shapes` lists the factors of D for each network
type. DoRA then scales the columns or rows of the sum to trained magnitudes (`lora_studio.lora.dora`). Adapter weights
are always fp32: in bf16 an update of 1e-4 is lost in rounding. The base stays frozen in its own dtype.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.loha.layer import LoHaLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from torch import Tensor, nn

from lora_studio.errors import InputError
from lora_studio.lora.dora import DoraConv2d, DoraLinear, dora_magnitude, init_dora_magnitude
from lora_studio.lora.dropout import add_dropout
from lora_studio.lora.fused_linear import FusedLoraLinear
from lora_studio.lora.layers import find_target_layers
from lora_studio.lora.shapes import DimAlpha, DoraAxis, dora_axis, layer_dim_alpha
from lora_studio.lora.tucker import use_tucker_loha
from lora_studio.settings.choices import NetworkType
from lora_studio.settings.recipe import Recipe

AdaptedLayer = LoraLayer | LycorisLayer
ADAPTER_NAME = "default"
DOWN, UP, MAGNITUDE = "lora_down.weight", "lora_up.weight", "dora_scale"
# Names in a saved training state; those of magnitudes depend on their axis.
STATE_NAMES = {DOWN: "A", UP: "B"}
MAGNITUDE_STATE_NAMES = {DoraAxis.OUTPUT: "dora_scale", DoraAxis.INPUT: "dora_scale_in"}


@dataclass(frozen=True)
class Adapters:
    """The models that have an adapter, by kohya's names: `unet`, `te1`, `te2`."""

    models: dict[str, nn.Module]

    @cached_property
    def layers(self) -> list[tuple[str, str, AdaptedLayer]]:
        """Every adapted layer as (model name, module path, layer), in a fixed order."""
        return [
            (prefix, path, module)
            for prefix, model in self.models.items()
            for path, module in model.named_modules()
            if isinstance(module, AdaptedLayer)
        ]

    @property
    def dora_axis(self) -> DoraAxis | None:
        """The axis of a DoRA's magnitudes; None for other network types."""
        found = (dora_magnitude(layer, ADAPTER_NAME) for _, _, layer in self.layers)
        return next((magnitude.axis for magnitude in found if magnitude is not None), None)

    @property
    def dims(self) -> set[DimAlpha]:
        """The distinct dims and alphas of the layers."""
        return {DimAlpha(layer.r[ADAPTER_NAME], layer_alpha(layer)) for _, _, layer in self.layers}

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Compute with the base alone inside the block; weights and gradients stay as they are."""
        # peft's `enable_adapters` would also change which weights require gradients
        for _, _, layer in self.layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for _, _, layer in self.layers:
                layer._disable_adapters = False

    def init_magnitudes(self, axis: DoraAxis) -> None:
        """Give every DoRA layer its base's norms along this axis as magnitudes."""
        for _, _, layer in self.layers:
            init_dora_magnitude(layer, ADAPTER_NAME, axis)

    def parameters(self, *prefixes: str) -> list[nn.Parameter]:
        """Return the trained weights of these models, in a fixed order."""
        return [
            parameter
            for prefix, _, layer in self.layers
            if prefix in prefixes
            for parameter in layer_tensors(layer).values()
        ]

    def state(self) -> dict[str, Tensor]:
        """Return the weights by name, fp32, on the CPU.

        A LoRA's are `unet/PATH/A` [dim, in...] and `unet/PATH/B` [out, dim...], a DoRA's magnitudes per input
        `unet/PATH/dora_scale_in`, per output `unet/PATH/dora_scale`; those of other network types have their LyCORIS
        names.
        """
        return {name: parameter.detach().cpu().contiguous() for name, parameter in self._named()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load weights that `state` returned; raise KeyError or RuntimeError if they are another network's."""
        for name, parameter in self._named():
            parameter.copy_(state[name])

    def is_finite(self) -> bool:
        """Return True if no weight is NaN or infinite; synchronises with the device once."""
        parts = [parameter.detach().isfinite().all() for parameter in self.parameters(*self.models)]
        return bool(torch.stack(parts).all())

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for prefix, path, layer in self.layers:
            names = dict(STATE_NAMES)
            if (magnitude := dora_magnitude(layer, ADAPTER_NAME)) is not None:
                names[MAGNITUDE] = MAGNITUDE_STATE_NAMES[magnitude.axis]
            for name, parameter in layer_tensors(layer).items():
                yield f"{prefix}/{path}/{names.get(name, name)}", parameter


def state_dora_axis(names: Iterable[str]) -> DoraAxis | None:
    """Return the axis of the magnitudes in a saved training state with tensors of these names; None without any."""
    axes = {name: axis for axis, name in MAGNITUDE_STATE_NAMES.items()}
    return next((axes[part] for name in names if (part := name.rpartition("/")[2]) in axes), None)


def layer_tensors(layer: AdaptedLayer, adapter: str = ADAPTER_NAME) -> dict[str, nn.Parameter]:
    """Return an adapted layer's weights by their names in kohya's and LyCORIS' files, in peft's shapes."""
    if not isinstance(layer, LoraLayer):
        factors = {name: getattr(layer, name) for name in layer.adapter_layer_names}
        return {name: factor[adapter] for name, factor in factors.items() if adapter in factor}
    parts = {DOWN: layer.lora_A, UP: layer.lora_B, MAGNITUDE: layer.lora_magnitude_vector}
    return {name: part[adapter].get_parameter("weight") for name, part in parts.items() if adapter in part}


def layer_alpha(layer: AdaptedLayer) -> float:
    """Return an adapted layer's alpha, of which alpha / dim is its scale."""
    return float(layer.scaling[ADAPTER_NAME] * layer.r[ADAPTER_NAME])


def add_adapters(
    unet: UNet2DConditionModel,
    text_encoders: Sequence[nn.Module],
    recipe: Recipe,
    *,
    axis: DoraAxis | None = None,
    network: Mapping[tuple[str, str], DimAlpha] | None = None,
) -> Adapters:
    """Inject the recipe's adapters into the models, in place; a DoRA's magnitudes along `axis`, else the recipe's.

    `network` has the dim and alpha of each trained layer by model name and path; by default they are the recipe's.

    They are initialised from its seed and change nothing before training, since one of their factors is zero. The
    layers' `cast_input_dtype_enabled` is off where the base is in half precision: there autocast does the casting.
    Raises InputError for an axis that the recipe's file format does not have.
    """
    if axis is DoraAxis.INPUT and dora_axis(recipe) is DoraAxis.OUTPUT:
        raise InputError(
            f"save_format is {recipe.save_format.value}, but this DoRA has magnitudes per input.",
            "Set save_format to kohya, as at the start of the run.",
            code="save_format",
        )
    models: dict[str, nn.Module] = {"unet": unet}
    models |= {f"te{number}": encoder for number, encoder in enumerate(text_encoders, 1)}
    dims: dict[str, dict[str, DimAlpha]] = defaultdict(dict)
    for target in find_target_layers(unet, text_encoders):
        key = target.model, target.path
        if dim_alpha := layer_dim_alpha(recipe, target.layer) if network is None else network.get(key):
            dims[target.model][target.path] = dim_alpha
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        for prefix, chosen in dims.items():
            inject(
                models[prefix],
                recipe.network_type,
                chosen,
                ADAPTER_NAME,
                dropout=recipe.network_dropout,
                rank_dropout=recipe.rank_dropout,
                module_dropout=recipe.module_dropout,
                lokr_factor=recipe.lokr_factor,
                tucker=recipe.use_tucker,
            )
    adapters = Adapters({prefix: models[prefix] for prefix in dims})
    for _, _, layer in adapters.layers:
        layer.cast_input_dtype_enabled = layer.get_base_weight().dtype == torch.float32
    for parameter in adapters.parameters(*adapters.models):
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    adapters.init_magnitudes(dora_axis(recipe) if axis is None else axis)
    return adapters


def inject(
    model: nn.Module,
    network_type: NetworkType,
    dims: Mapping[str, DimAlpha],
    adapter: str,
    *,
    dropout: float = 0.0,
    rank_dropout: float = 0.0,
    module_dropout: float = 0.0,
    lokr_factor: int = -1,
    tucker: bool = False,
    inference: bool = False,
) -> None:
    """Wrap the layers at these paths in new peft layers of one network type; trainable unless `inference`.

    `dropout` and `rank_dropout` are the same for LoHa and LoKr; the larger is used.
    """
    (dim, alpha), _ = Counter(dims.values()).most_common(1)[0]
    common: dict[str, Any] = {
        "r": dim,
        "target_modules": list(dims),
        "rank_pattern": _peft_pattern({path: layer.dim for path, layer in dims.items()}, dim),
        "alpha_pattern": _peft_pattern({path: layer.alpha for path, layer in dims.items()}, alpha),
        "inference_mode": inference,
    }
    config: PeftConfig
    match network_type:
        case NetworkType.LOHA:
            config = LoHaConfig(
                alpha=alpha,  # type: ignore[arg-type]
                rank_dropout=max(dropout, rank_dropout),
                module_dropout=module_dropout,
                use_effective_conv2d=tucker,
                **common,
            )
        case NetworkType.LOKR:
            config = LoKrConfig(
                alpha=alpha,  # type: ignore[arg-type]
                rank_dropout=max(dropout, rank_dropout),
                module_dropout=module_dropout,
                rank_dropout_scale=True,
                decompose_factor=lokr_factor,
                init_weights="lycoris",
                use_effective_conv2d=tucker,
                **common,
            )
        case _:
            config = LoraConfig(lora_alpha=alpha, lora_dropout=dropout, **common)  # type: ignore[arg-type]
            is_dora = network_type is NetworkType.DORA
            config._register_custom_module(
                {nn.Linear: DoraLinear, nn.Conv2d: DoraConv2d} if is_dora else {nn.Linear: FusedLoraLinear}
            )
    inject_adapter_in_model(config, model, adapter_name=adapter)
    for path in dims:
        layer = model.get_submodule(path)
        use_tucker_loha(layer, adapter)
        _init_loha(layer, adapter)
        add_dropout(layer, adapter, rank_dropout=rank_dropout, module_dropout=module_dropout)


@torch.no_grad()
def _init_loha(layer: nn.Module, adapter: str) -> None:
    """Initialise the factors of a LoHa as LyCORIS does, so that it learns at the same rates.

    Its change after one step of size lr is about lr * 0.1 * alpha per weight; with the uniform factors that peft
    begins with, it is hundreds of times smaller.
    """
    if isinstance(layer, LoHaLayer):
        layer.hada_w1_a[adapter].normal_(std=0.1)
        layer.hada_w1_b[adapter].normal_(std=1)
        layer.hada_w2_a[adapter].zero_()
        layer.hada_w2_b[adapter].normal_(std=1)
        for core in (layer.hada_t1, layer.hada_t2):
            if adapter in core:
                core[adapter].normal_(std=0.1)


def _peft_pattern(values: Mapping[str, float], default: float) -> dict[str, float]:
    """Return peft's pattern of the values that differ from the default.

    There is one regular expression per value, not per layer, since peft tries each on every layer.
    """
    paths: dict[float, list[str]] = defaultdict(list)
    for path, value in values.items():
        if value != default:
            paths[value].append(re.escape(path))
    return {"|".join(names): value for value, names in paths.items()}
