"""Rough estimates of the GPU memory of a run, part by part, and what to change when it does not fit.

SDXL's figures are counted on its real shapes (2,567 M weights in the UNet, 722 LoRA modules), with attention that keeps
no matrix of weights: `python -m benchmarks.memory` prints them for each phase of a run. Allocator, driver and desktop
take more, which cannot be computed in advance: the sum is rough and is shown as such. 1 GiB = 2**30 bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

from lora_studio.guide import MEMORY_SAVINGS, OPTIMIZERS, MemorySaving
from lora_studio.lora.shapes import (
    Layer,
    LayerRole,
    count_parameters,
    layer_dim_alpha,
    text_encoder_layers,
    trained_shapes,
    unet_layers,
)
from lora_studio.models.catalogue import BaseShape, KnownBase
from lora_studio.planning.rates import usual_rate
from lora_studio.settings.choices import (
    BasePrecision,
    GradientCheckpointing,
    NetworkType,
    Optimizer,
    Precision,
    SavePrecision,
    TokenLimit,
)
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.sample_prompts import read_sample_prompts

GIB = 2**30
RUNTIME_GIB = 0.8  # CUDA context, workspaces and fragmentation
DESKTOP_GIB = 0.4  # GPU memory used by a desktop
COMMUNICATION_GIB = 0.6  # NCCL's buffers per GPU; 0.3 to 1 GiB, by the number and the kind of GPUs
MIN_DIM = 8  # the smallest network dim that is proposed
TRAINING, DRAWING, ENCODING = "Training", "Drawing a sample", "Encoding images"  # phases of a run
ACTIVATIONS, RUNTIME, COMMUNICATION = "Activations", "Runtime", "Communication"  # parts of a training step's memory

# Bytes of optimizer state per LoRA weight. AdamW: two fp32 moments. AdamW8bit: two 8-bit moments with their scales,
# also when paged: pages leave the GPU only when it is full. Prodigy: AdamW's, the initial weight and the running sum.
# Lion: one moment. CAME: one in fp32. AdamWScheduleFree: a second moment and the weights before averaging.
# DAdaptAdam: AdamW's and the running sum. Prodigy-plus: the weights before averaging, and two 16-bit values for every
# eleventh. `_state_bytes` adds factored moments.
STATE_BYTES = {
    Optimizer.ADAFACTOR: 0.0,
    Optimizer.ADAMW: 8.0,
    Optimizer.ADAMW8BIT: 2.1,
    Optimizer.PAGED_ADAMW8BIT: 2.1,
    Optimizer.PRODIGY: 16.0,
    Optimizer.LION8BIT: 1.05,
    Optimizer.CAME: 4.0,
    Optimizer.SCHEDULE_FREE: 8.0,
    Optimizer.PRODIGY_PLUS: 4.0 + 4.0 / 11,
    Optimizer.DADAPT_ADAM: 12.0,
    Optimizer.LION: 4.0,
}
# Bytes per quantized weight, with its share of the fp32 scale of its block: 128 weights in int8, 64 in nf4.
QUANTIZED_BYTES = {BasePrecision.INT8: 1 + 4 / 128, BasePrecision.NF4: 1 / 2 + 4 / 64}
QUANTIZED_PARTS = (LayerRole.ATTENTION, LayerRole.FEED_FORWARD)  # only the UNet's transformer blocks are quantized
# Number of second moments kept as a row and a column instead of a matrix (Shazeer and Stern 2018).
FACTORED_MOMENTS = {Optimizer.ADAFACTOR: 1, Optimizer.CAME: 2, Optimizer.PRODIGY_PLUS: 1}


@dataclass(frozen=True)
class Architecture:
    """The sizes of a kind of base model that the estimates use.

    `layers` counts the layers that a LoRA can train. Activations (GiB) and work (TFLOP) are those of one image at
    `resolution` in half precision; activations with all that forward and backward pass allocate at their peak.
    `fused_activations` are those with the fused layers of plain LoRA; `checkpointed_activations` those with gradient
    checkpointing, which recomputes one block at a time; `forward_activations` those without gradients. Those of the
    text encoders are per 75 tokens. `vae_weights` (GiB) are in fp32, `vae_encoding` is what encoding an image at
    `resolution` in fp32 allocates, `vae_decoding` what decoding a tile of 512 px in half precision does.
    """

    resolution: int
    unet_weights: int
    text_weights: int
    layers: Counter[Layer]
    activations: float
    fused_activations: float
    checkpointed_activations: float
    forward_activations: float
    text_activations: float
    fused_text_activations: float
    checkpointed_text_activations: float
    vae_weights: float
    vae_encoding: float
    vae_decoding: float
    forward_tflop: float
    backward_tflop: float


_BY_WEIGHTS = (  # fields that are scaled for a base of another shape
    *("activations", "fused_activations", "checkpointed_activations", "forward_activations"),
    *("text_activations", "fused_text_activations", "checkpointed_text_activations"),
    *("forward_tflop", "backward_tflop"),
)
SDXL = Architecture(
    resolution=1024,
    unet_weights=2_567_463_684,
    text_weights=817_000_000,
    # CLIP-L has 12 layers of 768 / 3072, OpenCLIP bigG 32 of 1280 / 5120.
    layers=unet_layers((320, 640, 1280), (0, 2, 10), per_level=2, text_width=2048)
    + text_encoder_layers("te1", 768, 12)
    + text_encoder_layers("te2", 1280, 32),
    activations=9.14,
    fused_activations=5.94,
    checkpointed_activations=0.6,
    forward_activations=0.15,
    text_activations=0.236,
    fused_text_activations=0.157,
    checkpointed_text_activations=0.03,
    vae_weights=0.31,
    vae_encoding=2.51,
    vae_decoding=0.38,
    forward_tflop=6.94,
    backward_tflop=8.07,
)
EMBEDDED = Architecture(
    resolution=128,
    unet_weights=7_142_820,
    text_weights=1_300_000,
    layers=unet_layers((64, 96, 128), (0, 1, 2), per_level=1, text_width=160)
    + text_encoder_layers("te1", 64, 3)
    + text_encoder_layers("te2", 96, 3),
    activations=0.03,
    fused_activations=0.03,
    checkpointed_activations=0.01,
    forward_activations=0.005,
    text_activations=0.005,
    fused_text_activations=0.005,
    checkpointed_text_activations=0.001,
    vae_weights=0.01,
    vae_encoding=0.05,
    vae_decoding=0.05,
    forward_tflop=0.0004,
    backward_tflop=0.0008,
)


def architecture_of(base: KnownBase | None) -> Architecture:
    """Return the sizes of a base; one whose shape is not known is assumed to be a full SDXL."""
    if base is None or base.shape is None:
        return EMBEDDED if base is not None and base.is_embedded else SDXL
    return _architecture(base.shape, base.resolution)


@lru_cache(maxsize=16)
def _architecture(shape: BaseShape, resolution: int) -> Architecture:
    """Return the sizes of a base of SDXL's structure; work and memory are scaled by the number of its weights."""
    first, second = shape.text_encoders
    width = first.width + second.width
    layers = unet_layers(shape.widths, shape.depths, per_level=shape.per_level, text_width=width)
    for model, text in (("te1", first), ("te2", second)):
        layers += text_encoder_layers(model, text.width, text.layers, text.feed_forward)
    for known in (SDXL, EMBEDDED):
        if layers == known.layers:
            return known
    scale = _weights(layers) / _weights(SDXL.layers)
    area = (resolution / SDXL.resolution) ** 2
    return replace(
        SDXL,
        **{name: getattr(SDXL, name) * scale for name in _BY_WEIGHTS},
        resolution=resolution,
        vae_encoding=SDXL.vae_encoding * area,
        unet_weights=round(SDXL.unet_weights * scale),
        text_weights=round(SDXL.text_weights * scale),
        layers=layers,
    )


def _weights(layers: Counter[Layer]) -> int:
    return sum(layer.parameter_count * count for layer, count in layers.items())


def lora_weights(recipe: Recipe, base: KnownBase | None = None) -> int:
    """Return the number of trained weights."""
    return count_parameters(recipe, architecture_of(base).layers)


def lora_mib(recipe: Recipe, base: KnownBase | None = None, *, on_cpu: bool = False) -> float:
    """Return the size of the LoRA file in MiB: two bytes per weight, or four in fp32, which is `auto` on a CPU."""
    precision = recipe.mixed_precision
    in_fp32 = precision is Precision.FP32 or (precision is Precision.AUTO and on_cpu)
    return lora_weights(recipe, base) * file_width(recipe, in_fp32=in_fp32) / 2**20


def file_width(recipe: Recipe, *, in_fp32: bool) -> int:
    """Return the bytes per weight of the LoRA file of a run, which is in fp32 or in half precision."""
    saved = recipe.save_precision
    return 4 if saved is SavePrecision.FP32 or (saved is SavePrecision.AUTO and in_fp32) else 2


def estimate_vram_parts(
    recipe: Recipe, base: KnownBase | None = None, vram_gib: float | None = None, *, processes: int = 1
) -> dict[str, float]:
    """Estimate the GPU memory in GiB by its use; no bucket has a larger area than `resolution` squared.

    With gradient checkpointing on auto, activations use what `vram_gib` leaves them, or their minimum if it is None.
    If another phase takes more than training, what it takes beyond that is a part with its name.
    """
    parts = training_parts(recipe, base, vram_gib, processes=processes)
    return with_largest_phase(parts, estimate_vram_phases(recipe, base, vram_gib, processes=processes))


def with_largest_phase(parts: dict[str, float], phases: dict[str, float]) -> dict[str, float]:
    """Return the parts of training, with what a larger phase takes beyond that as a part of its name."""
    largest = max(phases, key=lambda phase: phases[phase])
    return parts if largest == TRAINING else parts | {largest: round(phases[largest] - phases[TRAINING], 3)}


def estimate_vram_phases(
    recipe: Recipe, base: KnownBase | None = None, vram_gib: float | None = None, *, processes: int = 1
) -> dict[str, float]:
    """Estimate the GPU memory in GiB of each phase of a run: training, encoding images, drawing samples if it does.

    Where memory is short, samples are decoded in tiles: this is what that takes.
    """
    parts = training_parts(recipe, base, vram_gib, processes=processes)
    training = sum(parts.values())
    shape = architecture_of(base)
    area = (recipe.resolution / shape.resolution) ** 2
    phases = {
        TRAINING: training,
        ENCODING: RUNTIME_GIB + shape.vae_weights + shape.vae_encoding * area,
    }
    if draws_samples(recipe):
        step = parts[ACTIVATIONS] + parts.get("Adapter products", 0)
        phases[DRAWING] = training - step + _drawing_gib(recipe, shape)
    return {name: round(value, 3) for name, value in phases.items()}


def draws_samples(recipe: Recipe) -> bool:
    """Return whether a run draws samples by itself."""
    return bool(recipe.sample_every_n_epochs or recipe.sample_every_n_steps or recipe.sample_at_first)


def _drawing_gib(recipe: Recipe, shape: Architecture) -> float:
    """Return what drawing the largest sample takes beside the models: the UNet's passes, then decoding in tiles.

    In half precision a copy of the VAE decodes.
    """
    wide = shape is EMBEDDED or recipe.mixed_precision is Precision.FP32
    denoising = 0.0
    for prompt in read_sample_prompts(recipe):
        settings = prompt.settings
        sides = (side or shape.resolution for side in (settings.sample_width, settings.sample_height))
        images = (2 if settings.sample_guidance > 1 else 1) * prod(sides) / shape.resolution**2
        denoising = max(denoising, images * shape.forward_activations * (2 if wide else 1))
    decoding = (shape.vae_weights / 2 + shape.vae_decoding) * (2 if wide else 1)
    return max(denoising, decoding)


def training_parts(
    recipe: Recipe,
    base: KnownBase | None,
    vram_gib: float | None = None,
    *,
    processes: int = 1,
    pixels: int | None = None,
) -> dict[str, float]:
    """Estimate the GPU memory in GiB of a training step by its use, for batches of at most `pixels` pixels."""
    share = recomputed_share(recipe, base, vram_gib, processes=processes)
    return _parts(recipe, base, 1.0 if share is None else share, processes, pixels)


def recomputed_share(
    recipe: Recipe, base: KnownBase | None, vram_gib: float | None, *, processes: int = 1
) -> float | None:
    """Return the share (0 to 1) of the blocks' activations that is recomputed on a GPU of `vram_gib`.

    None if gradient checkpointing is auto and `vram_gib` is not known.
    """
    if recipe.gradient_checkpointing is not GradientCheckpointing.AUTO:
        return float(recipe.gradient_checkpointing is GradientCheckpointing.ON)
    if vram_gib is None:
        return None
    most, least = (sum(_parts(recipe, base, share, processes).values()) for share in (0.0, 1.0))
    return min(1.0, max(0.0, (most - (vram_gib - DESKTOP_GIB)) / (most - least)))


def _parts(
    recipe: Recipe, base: KnownBase | None, share: float, processes: int, pixels: int | None = None
) -> dict[str, float]:
    shape = architecture_of(base)
    width = 4 if recipe.mixed_precision is Precision.FP32 or shape is EMBEDDED else 2  # bytes of a frozen weight
    weights = lora_weights(recipe, base)
    images = (pixels or recipe.resolution**2 * recipe.batch_size) / shape.resolution**2
    fused = recipe.network_type is NetworkType.LORA and not recipe.uses_dropout
    activations = shape.fused_activations if fused else shape.activations
    kept = share * shape.checkpointed_activations + (1 - share) * activations
    parts = {
        "UNet": _unet_bytes(recipe, shape, width) / GIB,
        "LoRA and gradients": weights * (8 + (4 if width == 2 else 0)) / GIB,  # with half-precision copies
        "Optimizer state": _state_bytes(recipe, shape, weights) / GIB,
        ACTIVATIONS: kept * images * width / 2,
    }
    if recipe.network_type in (NetworkType.LOHA, NetworkType.LOKR):
        parts["Adapter products"] = _adapter_product_bytes(recipe, shape, width, share) / GIB
    if recipe.trains_text_encoders:
        parts["Text encoders"] = shape.text_weights * width / GIB
        text = shape.fused_text_activations if fused else shape.text_activations
        text = share * shape.checkpointed_text_activations + (1 - share) * text
        chunks = recipe.max_token_length / TokenLimit.ONE
        parts[ACTIVATIONS] += text * chunks * recipe.batch_size * width / 2
    parts[RUNTIME] = RUNTIME_GIB
    if processes > 1:
        parts[COMMUNICATION] = COMMUNICATION_GIB
    return {name: round(value, 3) for name, value in parts.items()}


def estimate_vram_gib(
    recipe: Recipe, base: KnownBase | None = None, vram_gib: float | None = None, *, processes: int = 1
) -> float:
    """Estimate the GPU memory of a run in GiB: that of its largest phase, the sum of `estimate_vram_parts`."""
    return round(max(estimate_vram_phases(recipe, base, vram_gib, processes=processes).values()), 2)


def fits(recipe: Recipe, base: KnownBase | None, vram_gib: float, *, processes: int = 1) -> bool:
    """Return whether a run should fit a GPU of `vram_gib` that also drives a desktop."""
    return estimate_vram_gib(recipe, base, processes=processes) <= vram_gib - DESKTOP_GIB


def fit_vram(
    recipe: Recipe, base: KnownBase | None, vram_gib: float, keep: Collection[str] = (), *, processes: int = 1
) -> tuple[Recipe, list[MemorySaving]]:
    """Apply as few savings as needed to fit `vram_gib`, in the guide's order; return the recipe and the savings.

    Settings in `keep` stay unchanged. The result may still not fit: check it with `fits`.
    """
    applied = []
    for saving in MEMORY_SAVINGS:
        if fits(recipe, base, vram_gib, processes=processes):
            break
        if saving.setting in keep or not has_effect(recipe, saving):
            continue
        batch = saving.setting == "batch_size"
        recipe = _largest_batch(recipe, base, vram_gib, processes) if batch else apply_saving(recipe, saving)
        applied.append(saving)
    return recipe, applied


def has_effect(recipe: Recipe, saving: MemorySaving) -> bool:
    """Return whether a saving would change this recipe."""
    match saving.setting:
        case "gradient_checkpointing":
            return recipe.gradient_checkpointing is GradientCheckpointing.OFF
        case "base_precision":
            smaller = list(BasePrecision)
            return smaller.index(recipe.base_precision) < smaller.index(BasePrecision(saving.value))
        case "optimizer":
            return _weight_bytes(recipe) > STATE_BYTES[Optimizer(saving.value)]
        case "text_encoder_lr":
            return recipe.text_encoder_lr > 0 and recipe.unet_lr > 0 and recipe.text_encoder_lr2 is None
        case _:
            return bool(getattr(recipe, saving.setting) > saving.value)


def next_saving(recipe: Recipe) -> MemorySaving | None:
    """Return the next thing to change after running out of GPU memory; None if the settings are the smallest."""
    for saving in MEMORY_SAVINGS:
        if has_effect(recipe, saving):
            return saving
    if recipe.network_dim > MIN_DIM:
        advice = f"Lower the network dim from {recipe.network_dim} to {MIN_DIM}"
        why = "Close other programs that use the GPU as well: little else is left to save."
        return MemorySaving("network_dim", "network_dim", MIN_DIM, advice, why, guide=False)
    return None


def saving_advice(recipe: Recipe) -> str:
    """Return the next thing to try after running out of GPU memory, with its reason."""
    if (saving := next_saving(recipe)) is not None:
        return f"{saving.advice}. {saving.why}"
    return "Close other programs that use the GPU, or use one with more memory: these settings are the smallest."


def apply_saving(recipe: Recipe, saving: MemorySaving) -> Recipe:
    """Return the recipe with a saving, and rates that suit the optimizer if it changes that."""
    changes = {saving.setting: saving.value}
    if saving.setting == "optimizer":
        changes |= {"optimizer_type": "", "optimizer_args": []}  # the arguments belong to the other optimizer
    other_rates = bool(recipe.optimizer_type) or OPTIMIZERS[recipe.optimizer.value].learning_rate_free
    if saving.setting == "optimizer" and other_rates:
        # Its rates may be factors around 1, with which any other optimizer would diverge.
        suited = Recipe.parse(recipe.model_dump() | changes)
        changes |= {name: usual_rate(name, suited) for name in recipe.named_rates}
    return Recipe.parse(recipe.model_dump() | changes)


def _largest_batch(recipe: Recipe, base: KnownBase | None, vram_gib: float, processes: int) -> Recipe:
    """Return the recipe with the largest smaller batch size that fits, or 1 if none does."""
    for size in range(recipe.batch_size - 1, 0, -1):
        candidate = recipe.model_copy(update={"batch_size": size})
        if fits(candidate, base, vram_gib, processes=processes):
            return candidate
    return recipe.model_copy(update={"batch_size": 1})


def _unet_bytes(recipe: Recipe, shape: Architecture, width: int) -> float:
    """Return the bytes of the frozen UNet, with `width` bytes per weight that is not quantized."""
    unquantized: float = shape.unet_weights * width
    if recipe.base_precision is BasePrecision.FULL:
        return unquantized
    layers = (item for item in shape.layers.items() if item[0].model == "unet" and item[0].role in QUANTIZED_PARTS)
    quantized = sum(layer.parameter_count * count for layer, count in layers)
    return unquantized - quantized * (width - QUANTIZED_BYTES[recipe.base_precision])


def _state_bytes(recipe: Recipe, shape: Architecture, weights: int) -> float:
    # a row and a column of each matrix, in fp32
    factored = 4 * sum(_factored(sides) * count for sides, count in trained_shapes(recipe, shape.layers).items())
    return optimizer_bytes(recipe, weights) + FACTORED_MOMENTS.get(recipe.optimizer, 0) * factored


def _factored(sides: tuple[int, ...]) -> int:
    return prod(sides) // sides[-1] + prod(sides) // sides[-2]


def _adapter_product_bytes(recipe: Recipe, shape: Architecture, width: int, share: float) -> float:
    """Return the bytes of the full matrices that LoHa and LoKr multiply out per layer and keep for the backward pass.

    Of the recomputed `share`, only one block of the UNet has them at a time.
    """
    trained = {layer: count for layer, count in shape.layers.items() if layer_dim_alpha(recipe, layer)}
    blocks: Counter[str] = Counter()
    for layer, count in trained.items():
        blocks[layer.block or layer.model] += layer.parameter_count * count * width
    return share * max(blocks.values(), default=0) + (1 - share) * blocks.total()


def optimizer_bytes(recipe: Recipe, weights: int) -> float:
    """Return the bytes of optimizer state and EMA for `weights` weights, without factored moments."""
    return (_weight_bytes(recipe) + (4.0 if recipe.ema_decay else 0.0)) * weights


def _weight_bytes(recipe: Recipe) -> float:
    """Return bytes of optimizer state per weight; Prodigy's slice_p shrinks the half that finds the rate."""
    if recipe.optimizer_type:
        return max(STATE_BYTES.values())  # its state is unknown
    size = STATE_BYTES[recipe.optimizer]
    sliced = dict(text.split("=", 1) for text in recipe.optimizer_args).get("slice_p", "")
    if recipe.optimizer is Optimizer.PRODIGY and sliced.isdecimal() and int(sliced):
        return size / 2 + size / 2 / int(sliced)
    return size
