"""Names of the layers and tensors in LoRA files of all trainers, converted to one spelling; no torch.

A layer's name is kohya's (`lora_unet_input_blocks_4_1_proj_in`, `lora_te1_text_model_...`) or a path in one of the
models (`unet.down_blocks.1.attentions.0.proj_in`, `text_encoder_2.text_model...`). These spellings are read:

- kohya's sd-scripts, LyCORIS in it, OneTrainer and ai-toolkit: `lora_unet_`, `lora_te1_`, `lora_te2_`
- LyCORIS around a diffusers model (SimpleTuner): `lycoris_` and the path of the UNet
- ComfyUI's nodes that save or train: `diffusion_model.` and `text_encoders.clip_l.transformer.`
- diffusers and peft: `unet.`, `text_encoder.`, `base_model.model.`, or only the path
- diffusers before 0.22: `.attn1.processor.to_q_lora.down.weight`, with and without `unet.`

A text encoder that a file does not name is `ANY_TEXT_ENCODER`; it is found by the shapes of its layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

ANY_TEXT_ENCODER = "any"
PEFT_PREFIXES = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}
# The tensor names of a layer in kohya's and LyCORIS' files, and the names that diffusers and peft use instead.
PART_NAMES = (
    r"lora_(?:down|mid|up)\.weight|alpha|dora_scale|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2"
    r"|diff_b|diff|w_norm|b_norm|on_input|weight"
)
PART_ALIASES = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora.down.weight": "lora_down.weight",
    "lora.up.weight": "lora_up.weight",
    "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_linear_layer.up.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
    "lora_magnitude_vector.weight": "dora_scale",
}
# Parts that are added to a bias or to a norm's weight, not to the weight of a layer.
VECTOR_PARTS = frozenset({"diff_b", "w_norm", "b_norm"})
EMBEDDING_KEY = re.compile(r"bundle_emb\.(.+)\.(?:clip_[lg](?:_out)?|string_to_param\.\*)")
_TENSOR = re.compile(rf"(.+?)\.({'|'.join(map(re.escape, PART_ALIASES))}|{PART_NAMES})")
# peft writes the adapter's name into the tensors' names of an unsaved model, and some tools save that.
_ADAPTER_NAME = re.compile(r"\.default(?=\.weight$|$)")
_OLD_PROCESSOR = re.compile(r"(.+?)(?:\.processor)?\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight")
_KOHYA = re.compile(r"lora_(?:unet|te1|te2)_\w+")
_PREFIXES = {
    "diffusion_model.": "unet.",
    "text_encoders.clip_l.transformer.": "text_encoder.",
    "text_encoders.clip_g.transformer.": "text_encoder_2.",
    "unet.": "unet.",
    "text_encoder.": "text_encoder.",
    "text_encoder_2.": "text_encoder_2.",
}
_UNET_PARTS = (
    *("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "conv_norm_out"),
    *("time_embedding", "add_embedding"),
    *("input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"),
)
_TEXT_PARTS = ("text_model", "encoder")

# The layers of a resnet in Stability's code (generative-models), and the layers outside the blocks.
RESNET_NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE_NAMES = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_CONV_3X3 = re.compile(
    r".*(?:in_layers[._]2|out_layers[._]3|[._]op|conv[12]|[._]conv|conv_in|conv_out|input_blocks[._]0[._]0|[._]out[._]2)"
)
_CONV_1X1 = re.compile(r".*(?:skip_connection|conv_shortcut)")
_ATTENTION_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT_LAYERS = (
    *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
    *("mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"),
)


def split_tensor_name(name: str) -> tuple[str, str] | None:
    """Return the layer's name and kohya's name of the part, for a tensor of a LoRA for SDXL; None for other tensors."""
    name = _ADAPTER_NAME.sub("", name)
    if match := _OLD_PROCESSOR.fullmatch(name):
        layer, projection, side = match.groups()
        if layer.endswith("self_attn"):
            projection = "out_proj" if projection == "to_out" else f"{projection[-1]}_proj"
        elif projection == "to_out":
            projection = "to_out.0"
        layer, part = f"{layer}.{projection}", f"lora_{side}.weight"
    elif match := _TENSOR.fullmatch(name):
        layer, part = match[1], PART_ALIASES.get(match[2], match[2])
    else:
        return None
    known = _layer_name(layer)
    return None if known is None else (known, part)


def _layer_name(layer: str) -> str | None:
    if _KOHYA.fullmatch(layer):
        return layer
    if layer.startswith("lycoris_") and "." not in layer:
        path = layer.removeprefix("lycoris_")
        is_text = path.startswith(tuple(f"{part}_" for part in _TEXT_PARTS))
        return f"lora_te_{ANY_TEXT_ENCODER}_{path}" if is_text else f"lora_unet_{path}"
    layer = layer.replace("base_model.model.", "", 1)
    for prefix, model in _PREFIXES.items():
        if layer.startswith(prefix):
            return model + layer.removeprefix(prefix)
    first = layer.partition(".")[0]
    if first in _UNET_PARTS:
        return f"unet.{layer}"
    return f"text_encoder_{ANY_TEXT_ENCODER}.{layer}" if first in _TEXT_PARTS else None


def names_of_layer(model: str, path: str, stability: str = "") -> Iterator[str]:
    """Yield every name that `split_tensor_name` may return for a layer, with and without `text_model`."""
    if model == "unet":
        paths, flat_models, dotted_models = {path, stability} - {""}, ["unet"], ["unet"]
    else:
        bare = path.removeprefix("text_model.")
        paths, flat_models = {bare, f"text_model.{bare}"}, [model, f"te_{ANY_TEXT_ENCODER}"]
        dotted_models = [PEFT_PREFIXES[model], f"text_encoder_{ANY_TEXT_ENCODER}"]
    for name in paths:
        yield from (f"lora_{prefix}_{name.replace('.', '_')}" for prefix in flat_models)
        yield from (f"{prefix}.{name}" for prefix in dotted_models)


def kernel_of_name(layer: str) -> tuple[int, ...]:
    """Return the kernel of a layer of SDXL by its name: (3, 3) or (1, 1) of a convolution, () of a linear layer."""
    if not layer.startswith(("lora_unet", "unet.")):
        return ()
    if _CONV_1X1.fullmatch(layer):
        return (1, 1)
    return (3, 3) if _CONV_3X3.fullmatch(layer) else ()


def number_blocks(down: Sequence[tuple[int, bool]], up: Sequence[tuple[int, bool, bool]]) -> dict[str, str]:
    """Return diffusers' path prefix -> Stability's of every module in a UNet's blocks, for any number of levels.

    `down` has the number of resnets of each level and whether a downsampler follows, `up` the number of resnets,
    whether the level has attention, and whether an upsampler follows. Stability's code numbers them consecutively:
    `input_blocks.0` is the first convolution, then each pair of resnet and attention has a number, and each
    downsampler. In `output_blocks` an upsampler belongs to the last pair of its level.
    """
    names = {}
    number = 1
    for level, (resnets, has_downsampler) in enumerate(down):
        for layer in range(resnets):
            names[f"down_blocks.{level}.resnets.{layer}."] = f"input_blocks.{number}.0."
            names[f"down_blocks.{level}.attentions.{layer}."] = f"input_blocks.{number}.1."
            number += 1
        if has_downsampler:
            names[f"down_blocks.{level}.downsamplers.0."] = f"input_blocks.{number}.0."
            number += 1
    names["mid_block.resnets.0."] = "middle_block.0."
    names["mid_block.attentions.0."] = "middle_block.1."
    names["mid_block.resnets.1."] = "middle_block.2."
    number = 0
    for level, (resnets, has_attention, has_upsampler) in enumerate(up):
        for layer in range(resnets):
            names[f"up_blocks.{level}.resnets.{layer}."] = f"output_blocks.{number}.0."
            names[f"up_blocks.{level}.attentions.{layer}."] = f"output_blocks.{number}.1."
            number += 1
        if has_upsampler:
            names[f"up_blocks.{level}.upsamplers.0."] = f"output_blocks.{number - 1}.{2 if has_attention else 1}."
    return names


def to_stability_path(path: str, blocks: dict[str, str]) -> str:
    """Return a layer's path in Stability's UNet; empty outside the blocks. `blocks` is that of `number_blocks`."""
    parts = path.split(".")
    depth = 3 if parts[0] == "mid_block" else 4
    prefix, name = ".".join(parts[:depth]) + ".", ".".join(parts[depth:])
    if prefix not in blocks:
        return ""
    if ".resnets." in prefix:
        name = RESNET_NAMES.get(name, name)
    if ".downsamplers." in prefix:
        name = "op"
    return blocks[prefix] + name


def kohya_name(model: str, path: str, stability: str = "") -> str:
    """Return a layer's name in kohya's files; `model` is unet, te1 or te2, `stability` the path in Stability's UNet."""
    if model != "unet" and not path.startswith(("text_model.", "text_projection")):
        path = f"text_model.{path}"  # newer versions of transformers lack this level in the first text encoder
    return f"lora_{model}_{(stability or path).replace('.', '_')}"


def sdxl_layer_names(per_level: int = 2) -> Iterator[tuple[str, str, str, str]]:
    """Yield (model, path in diffusers, path in Stability's UNet, kohya's name) of every layer of an SDXL.

    `per_level` is the number of resnets per level of the down blocks: 2 in SDXL, 1 in the embedded base. The depth of
    attention blocks is SDXL's largest, 10.
    """
    down = [(per_level, True), (per_level, True), (per_level, False)]
    up = [(per_level + 1, True, True), (per_level + 1, True, True), (per_level + 1, False, False)]
    blocks = number_blocks(down, up)
    paths = {
        prefix + name: to_stability_path(prefix + name, blocks) for prefix in blocks for name in _layers_of(prefix)
    }
    for path, stability in (paths | OUTSIDE_NAMES).items():
        yield "unet", path, stability, kohya_name("unet", path, stability)
    for model, depth in (("te1", 12), ("te2", 32)):
        for number in range(depth):
            for name in _TEXT_LAYERS:
                path = f"text_model.encoder.layers.{number}.{name}"
                yield model, path, "", kohya_name(model, path)
        for path in ("text_model.final_layer_norm", "text_projection"):
            yield model, path, "", kohya_name(model, path)


def _layers_of(prefix: str) -> Iterable[str]:
    if ".resnets." in prefix:
        return RESNET_NAMES
    if "samplers." in prefix:
        return ("conv",)
    layers = ["norm", "proj_in", "proj_out"]
    for depth in range(10):
        block = f"transformer_blocks.{depth}"
        layers += [f"{block}.norm{number}" for number in (1, 2, 3)]
        layers += [f"{block}.{attention}.{name}" for attention in ("attn1", "attn2") for name in _ATTENTION_LAYERS]
        layers += [f"{block}.ff.net.0.proj", f"{block}.ff.net.2"]
    return layers
