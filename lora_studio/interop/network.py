"""Networks: kohya's and LyCORIS' modules with their arguments, and the settings that mean the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lora_studio.interop.arguments import LeftOut
from lora_studio.interop.pairs import format_number, is_true, parse_pairs
from lora_studio.settings.block_dims import parse_block_dims
from lora_studio.settings.blocks import BLOCKS, PART_SIZES
from lora_studio.settings.choices import NetworkType, TrainLayers
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.sections.network import FULL_MATRIX_DIM
from lora_studio.settings.sections.rates import BLOCK_WEIGHTS, LORAPLUS_RATIOS

KOHYA, LYCORIS = "networks.lora", "lycoris.kohya"
# The network types of modules, and LyCORIS' names of network types and layer choices.
MODULES = {
    "networks.lora": NetworkType.LORA,
    "networks.loha": NetworkType.LOHA,
    "networks.lokr": NetworkType.LOKR,
}
ALGORITHMS = {
    NetworkType.LORA: "locon",
    NetworkType.LOCON: "locon",
    NetworkType.DORA: "locon",
    NetworkType.LOHA: "loha",
    NetworkType.LOKR: "lokr",
}
_TYPES = {"lora": NetworkType.LOCON, "locon": NetworkType.LOCON, "loha": NetworkType.LOHA, "lokr": NetworkType.LOKR}
PRESETS = {
    TrainLayers.ATTENTION: "attn-only",
    TrainLayers.ATTENTION_FF: "attn-mlp",
    TrainLayers.LINEAR: "full-lin",
    TrainLayers.ALL: "full",
}
_LAYERS = {preset: layers for layers, preset in PRESETS.items()}
_NO_SUCH_TYPE = "The studio does not have this network type: see network_type."
_DEFAULT_DIM, _DEFAULT_ALPHA = 4, 1.0  # of sd-scripts
_NOT_AVAILABLE = {
    "block_dims": "LyCORIS has the same rank in all blocks.",
    "block_alphas": "All blocks have the network alpha.",
    "conv_block_alphas": "All blocks have the same conv alpha.",
    "conv_block_dims": "All blocks have the same conv rank.",
    "constraint": "OFT is not available.",
    "decompose_both": "LoKr's small matrix is always whole.",
    "rank_dropout_scale": "What rank dropout keeps is scaled as in sd-scripts.",
    "rescaled": "OFT is not available.",
    "train_norm": "Norms are not trained.",
    "train_on_input": "IA3 is not available.",
    "unbalanced_factorization": "The factors of LoKr are those of lokr_factor.",
    "use_scalar": "A scalar for each layer is not trained.",
}
_SAME_RESULT = {
    "bypass_mode": "It changes how a layer is computed, not what it learns.",
    "wd_on_output": "A DoRA's magnitudes are per input in kohya's file format.",
}


class NetworkArguments(NamedTuple):
    """sd-scripts' module of a network, and its arguments as texts."""

    module: str
    arguments: dict[str, str]


def network_arguments(recipe: Recipe, *, wd_on_output: bool = False) -> NetworkArguments:
    """Return the module and arguments with which sd-scripts trains a recipe's network.

    sd-scripts' own module where it can train the network, else LyCORIS. `wd_on_output` says whether a DoRA's
    magnitudes are per output.
    """
    plain = recipe.network_type in (NetworkType.LORA, NetworkType.LOCON)
    own = plain and (recipe.trains_convolutions or recipe.train_layers is TrainLayers.ATTENTION_FF)
    own = own and not recipe.rank_stabilized
    found: dict[str, str] = {}
    if not own:
        layers = TrainLayers.ALL if recipe.trains_convolutions else recipe.train_layers
        found |= {"algo": ALGORITHMS[recipe.network_type], "preset": PRESETS[layers]}
    if recipe.trains_convolutions:
        dim = recipe.conv_dim or recipe.network_dim
        alpha = recipe.conv_alpha or recipe.network_alpha * dim / recipe.network_dim
        found |= {"conv_dim": str(dim), "conv_alpha": format_number(alpha)}
    if recipe.network_type is NetworkType.DORA:
        found |= {"dora_wd": "True", "wd_on_output": str(wd_on_output)}
    if recipe.network_type is NetworkType.LOKR:
        found |= {"factor": str(recipe.lokr_factor)}
        found |= {"full_matrix": "True"} if recipe.is_full_matrix else {}
    if recipe.use_tucker:
        found |= {"use_tucker": "True"}
    for name in ("rank_dropout", "module_dropout"):
        if value := getattr(recipe, name):
            found[name] = format_number(value)
    if recipe.rank_stabilized:
        found |= {"rs_lora": "True"}
    for name in LORAPLUS_RATIOS:
        if ratio := getattr(recipe, name):
            found[name] = format_number(ratio)
    for name, part in zip(BLOCK_WEIGHTS, PART_SIZES, strict=True):
        if getattr(recipe, name):
            factors = (factor for block, factor in recipe.block_factors.items() if block.startswith(part))
            found[name] = ",".join(map(format_number, factors))
    if dims := parse_block_dims(recipe.block_dims):
        numbers = [dims.get(block, recipe.network_dim) for block in BLOCKS]
        found |= {"block_dims": ",".join(map(str, [0, *numbers, 0]))}
    return NetworkArguments(KOHYA if own else LYCORIS, found)


def read_network(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[LeftOut]]:
    """Return the settings of a network's arguments, and what was left out.

    `given` has network_module, network_dim, network_alpha, network_dropout and network_args.
    """
    module = str(given.get("network_module") or KOHYA)
    arguments = parse_pairs(given.get("network_args"))
    values: dict[str, Any] = {
        "network_dim": given.get("network_dim") or _DEFAULT_DIM,
        "network_alpha": given.get("network_alpha") or _DEFAULT_ALPHA,
        "network_dropout": given.get("network_dropout") or 0.0,
    }
    if "dropout" in arguments:  # LyCORIS' name
        values["network_dropout"] = arguments.pop("dropout")
    left_out: list[LeftOut] = []
    if module == LYCORIS:
        values |= _lycoris_type(arguments, left_out)
    else:
        values |= _own_type(module, arguments, left_out)
    values |= _common(values, arguments, left_out, lycoris=module == LYCORIS)
    for name, value in arguments.items():
        if name in _SAME_RESULT:
            left_out.append(LeftOut(name, value, _SAME_RESULT[name], matters=False))
        elif value not in ("", "0", "None") and value.lower() != "false":
            why = _NOT_AVAILABLE.get(name, "The studio does not know this argument of the network.")
            left_out.append(LeftOut(name, value, why))
    return values, left_out


def _own_type(module: str, arguments: dict[str, str], left_out: list[LeftOut]) -> dict[str, Any]:
    """Return type and layers of a network of sd-scripts' own modules, which train convolutions if they have a rank."""
    kind = MODULES.get(module)
    if kind is None:
        left_out.append(
            LeftOut("network_module", module, "The studio does not have this network type: see network_type.")
        )
        kind = NetworkType.LORA
    convolutions = _is_set(arguments.get("conv_dim"))
    if kind is NetworkType.LORA:
        return {"network_type": NetworkType.LOCON if convolutions else kind, "train_layers": TrainLayers.ATTENTION_FF}
    return {"network_type": kind, "train_layers": TrainLayers.ALL if convolutions else TrainLayers.ATTENTION_FF}


def _lycoris_type(arguments: dict[str, str], left_out: list[LeftOut]) -> dict[str, Any]:
    algorithm, preset = arguments.pop("algo", "lora").lower(), arguments.pop("preset", "full")
    kind, layers = _TYPES.get(algorithm), _LAYERS.get(preset)
    if kind is None:
        left_out.append(LeftOut("algo", algorithm, _NO_SUCH_TYPE))
        kind = NetworkType.LOCON
    if layers is None:
        left_out.append(LeftOut("preset", preset, f"Use one of {', '.join(_LAYERS)}: see train_layers."))
        layers = TrainLayers.ALL
    if is_true(arguments.pop("dora_wd", "False")):
        if kind is NetworkType.LOCON:
            kind = NetworkType.DORA
        else:
            left_out.append(LeftOut("dora_wd", "True", f"The studio has no DoRA of a {kind.value}."))
    if kind is NetworkType.LOCON and layers is not TrainLayers.ALL:
        kind = NetworkType.LORA
    if kind is NetworkType.LOCON:
        layers = TrainLayers.ATTENTION_FF  # which a LoCon does not use: it always trains all
    return {"network_type": kind, "train_layers": layers}


def _common(
    values: Mapping[str, Any], arguments: dict[str, str], left_out: list[LeftOut], *, lycoris: bool
) -> dict[str, Any]:
    """Return the settings that all modules share; those that are read are removed from `arguments`."""
    kind = values["network_type"]
    found: dict[str, Any] = {
        "rank_dropout": arguments.pop("rank_dropout", "") or 0.0,
        "module_dropout": arguments.pop("module_dropout", "") or 0.0,
        "rank_stabilized": is_true(arguments.pop("rs_lora", "False")),
    }
    for name in LORAPLUS_RATIOS:
        found[name] = arguments.pop(name, "") or None
        if found[name] and kind in (NetworkType.LOHA, NetworkType.LOKR):
            why = f"It has no effect on a {kind.value}, which has no up matrices."
            left_out.append(LeftOut(name, found.pop(name), why, matters=False))
    if not lycoris:  # which has the same rank and rate in all blocks
        found |= {name: arguments.pop(name, "") for name in ("block_dims", *BLOCK_WEIGHTS)}
        found["block_lr_zero_threshold"] = arguments.pop("block_lr_zero_threshold", "") or 0.0
    conv_dim, conv_alpha = (arguments.pop(name, "") for name in ("conv_dim", "conv_alpha"))
    if kind is NetworkType.LOCON or values["train_layers"] is TrainLayers.ALL:
        fallback = values["network_alpha"] if lycoris else _DEFAULT_ALPHA
        found["conv_dim"] = conv_dim if _is_set(conv_dim) else None
        found["conv_alpha"] = conv_alpha if _is_set(conv_alpha) else fallback if _is_set(conv_dim) else None
    elif _is_set(conv_dim):
        left_out.append(LeftOut("conv_dim", conv_dim, "This network does not train convolutions.", matters=False))
    factor = arguments.pop("factor", "") or "-1"
    tucker = [is_true(arguments.pop(name, "False")) for name in ("use_tucker", "use_cp")]
    full_matrix = is_true(arguments.pop("full_matrix", "False"))
    if kind in (NetworkType.LOHA, NetworkType.LOKR):
        found["use_tucker"] = any(tucker)
    elif any(tucker):
        left_out.append(LeftOut("use_tucker", "True", f"The studio has no Tucker decomposition of a {kind.value}."))
    if kind is NetworkType.LOKR:
        found["lokr_factor"] = factor
        if full_matrix and len(str(values["network_dim"])) < len(str(FULL_MATRIX_DIM)):
            found["network_dim"] = FULL_MATRIX_DIM
    return found


def _is_set(text: Any) -> bool:
    """Return False for no text and for the number 0; what is not a number is left to the check of the settings."""
    try:
        return float(text or 0) != 0
    except (TypeError, ValueError):
        return True
