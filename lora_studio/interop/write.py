"""Export a recipe as a TOML file that sd-scripts' sdxl_train_network.py accepts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import BaseModel, ConfigDict

from lora_studio.errors import InputError
from lora_studio.files import write_text
from lora_studio.interop.arguments import ARGUMENTS, LeftOut
from lora_studio.interop.dataset_config import write_subsets
from lora_studio.interop.network import LYCORIS, network_arguments
from lora_studio.interop.optimizer import optimizer_arguments, rate_arguments, schedule_arguments
from lora_studio.models.catalogue import find_base
from lora_studio.settings.choices import (
    BasePrecision,
    PredictionType,
    SaveFormat,
    TimestepSampling,
    Tracker,
)
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.sample_prompts import fill_trigger, negative_prompt
from lora_studio.settings.subsets import Subset
from lora_studio.workspace.project import image_sets

# Settings that sd-scripts does not have, with the value that changes nothing and the reason.
_NOT_IN_SD_SCRIPTS = (
    ("ema_decay", 0.0, "sd-scripts has no EMA."),
    ("timestep_sampling", TimestepSampling.UNIFORM, "sd-scripts draws SDXL's timesteps uniformly."),
    ("clip_skip", 2, "sd-scripts trains SDXL on the second to last layer, which is clip_skip 2."),
    ("base_precision", BasePrecision.FULL, "sd-scripts has fp8_base instead."),
    ("stop_text_encoder_training", 0.0, "sd-scripts trains the text encoders of SDXL until the end."),
    ("unmasked_weight", 0.0, "sd-scripts trains nothing outside of a mask."),
    ("save_format", SaveFormat.KOHYA, "sd-scripts writes kohya's format."),
    *((f"stop_at_{sign}", 0, "sd-scripts does not stop by itself.") for sign in ("plateau", "rise", "break")),
)


class ExportedSettings(BaseModel):
    """A TOML file for sd-scripts, and the settings that it could not contain.

    `prompts` is the file of sample prompts that it names, `dataset_config` that of the subsets.
    """

    model_config = ConfigDict(frozen=True)

    file: Path
    prompts: Path | None
    dataset_config: Path | None
    left_out: list[LeftOut]

    def lines(self) -> list[str]:
        """Return what was left out as sentences."""
        return [f"{item.name} = {item.value}: {item.why}" for item in self.left_out]


def export_settings(
    recipe: Recipe,
    file: Path | str,
    *,
    base: str = "",
    dataset: Path | str | None = None,
    name: str = "lora",
    trigger_word: str = "",
    regularization: Path | str | None = None,
    prediction_type: str = "",
    total_steps: int | None = None,
    subsets: Sequence[Subset] = (),
) -> ExportedSettings:
    """Write `file`, a .toml for sd-scripts' --config_file, and the files that it names beside it.

    These are the sample prompts (NAME-prompts.txt) and, where the folders' names do not say the repeats, the subsets
    (NAME-dataset.toml), of which there are `subsets` or the sets in `dataset`.

    `base`, `dataset` and `regularization` are written as they are, and left out if empty. `prediction_type` is the
    base's, `total_steps` the length of the run if it is known. Raises InputError if `file` exists or is not a .toml,
    DiskFullError.
    """
    file = Path(file).expanduser()
    prompts, config = (file.with_name(f"{file.stem}-{ending}") for ending in ("prompts.txt", "dataset.toml"))
    if file.suffix.lower() != ".toml":
        raise InputError(f"{file.name} is not a .toml file.", "Give a name that ends in .toml.", code="export_type")
    for path in (file, prompts, config):
        if path.exists():
            raise InputError(f"{path} already exists.", "Give another name, or remove it.", code="exists")
    arguments, left_out = sd_scripts_arguments(recipe, prediction_type, total_steps)
    found: dict[str, Any] = {
        "pretrained_model_name_or_path": known.repo if (known := find_base(base)) else base,
        "train_data_dir": str(dataset) if dataset else "",
        "reg_data_dir": str(regularization) if regularization else "",
        "output_dir": "output",
        "output_name": name,
        "training_comment": f"trigger: {trigger_word}" if trigger_word else "",
        **arguments,
    }
    lines = _prompt_lines(recipe, base, trigger_word)
    if lines:
        found["sample_prompts"] = str(prompts.absolute())
        write_text(prompts, "".join(f"{line}\n" for line in lines))
    described = _subsets(recipe, dataset, regularization, subsets, trigger_word)
    if described:
        del found["train_data_dir"], found["reg_data_dir"]
        found["dataset_config"] = str(config.absolute())
        if any(subset.settings.get("random_crop") for subset in described):
            found.pop("cache_latents", None)  # sd-scripts stops at both
        write_text(config, write_subsets(described, recipe))
    write_text(file, _toml(found, left_out))
    return ExportedSettings(
        file=file,
        prompts=prompts if lines else None,
        dataset_config=config if described else None,
        left_out=left_out,
    )


def _subsets(
    recipe: Recipe,
    dataset: Path | str | None,
    regularization: Path | str | None,
    subsets: Sequence[Subset],
    trigger_word: str,
) -> list[Subset]:
    """Return the subsets that sd-scripts has to read; [] if it finds the same in the folders by their names."""
    if dataset is None:
        return []
    folders = [(False, Path(dataset).expanduser())]
    folders += [(True, Path(regularization).expanduser())] if regularization else []
    sets = [(is_reg, item) for is_reg, folder in folders for item in image_sets(folder)]
    if not subsets and not recipe.repeats and all(item.path not in dict(folders).values() for _, item in sets):
        return []
    if subsets:
        sets = [(is_reg, item) for is_reg, item in sets if is_reg]
    found = [
        Subset(
            image_dir=item.path.absolute(),
            num_repeats=item.repeats if is_reg else recipe.repeats or item.repeats,
            class_tokens=item.concept if is_reg else trigger_word or item.concept,
            is_reg=is_reg,
        )
        for is_reg, item in sets
    ]
    return [*subsets, *found]


def sd_scripts_arguments(
    recipe: Recipe, prediction_type: str = "", total_steps: int | None = None
) -> tuple[dict[str, Any], list[LeftOut]]:
    """Return the arguments with which sd-scripts trains as the recipe says, and the settings that it does not have."""
    left_out = [
        LeftOut(setting, str(getattr(recipe, setting)), why)
        for setting, neutral, why in _NOT_IN_SD_SCRIPTS
        if getattr(recipe, setting) != neutral
    ]
    network = network_arguments(recipe)
    found: dict[str, Any] = {
        "network_module": network.module,
        "network_dim": recipe.network_dim,
        "network_alpha": recipe.network_alpha,
    }
    if recipe.network_dropout:
        found["network_dropout"] = recipe.network_dropout
    if network.arguments:
        found["network_args"] = [f"{name}={value}" for name, value in network.arguments.items()]
    found |= rate_arguments(recipe) | optimizer_arguments(recipe)
    schedule, without = schedule_arguments(recipe)
    found |= schedule
    left_out += without
    found |= _length(recipe, total_steps)
    for argument in ARGUMENTS:
        value = getattr(recipe, argument.setting)
        if value == argument.default:
            continue
        try:
            written = argument.write(value)
        except ValueError as error:
            left_out.append(LeftOut(argument.setting, str(value), str(error)))
            continue
        if written is not None and written is not False:
            found[argument.name] = written
    if recipe.prediction_type is PredictionType.AUTO and prediction_type == PredictionType.V_PREDICTION:
        found["v_parameterization"] = True
    if recipe.block_dims and network.module == LYCORIS:
        left_out.append(LeftOut("block_dims", recipe.block_dims, "LyCORIS has the same rank in all blocks."))
    return found | _usual(recipe), left_out


def _length(recipe: Recipe, total_steps: int | None) -> dict[str, Any]:
    """Return the length of the run: the epochs, unless steps end it earlier; sd-scripts takes one of the two."""
    found: dict[str, Any] = {"save_every_n_epochs": recipe.save_every_n_epochs}
    steps = recipe.max_train_steps
    if steps is None or (total_steps is not None and total_steps < steps):
        found["max_train_epochs"] = recipe.epochs
    else:
        found["max_train_steps"] = steps
    return found


def _usual(recipe: Recipe) -> dict[str, Any]:
    """Return arguments for what the studio does by default and sd-scripts does not."""
    found: dict[str, Any] = {"save_model_as": "safetensors", "sdpa": True, "no_half_vae": True}
    if not recipe.random_crop:
        found["cache_latents"] = True
    if recipe.log_with is not Tracker.NONE:
        found["logging_dir"] = "logs"
    return found


def _prompt_lines(recipe: Recipe, base: str, trigger_word: str) -> list[str]:
    """Return the sample prompts with the recipe's size, seed, steps and guidance as options of each line."""
    options = {
        "n": negative_prompt(recipe, base),
        "w": recipe.sample_width,
        "h": recipe.sample_height,
        "d": recipe.sample_seed,
        "s": recipe.sample_steps,
        "l": f"{recipe.sample_guidance:g}",
    }
    lines = []
    for line in filter(None, (fill_trigger(prompt, trigger_word).strip() for prompt in recipe.sample_prompts)):
        added = [f"--{option} {value}" for option, value in options.items() if value not in ("", None)]
        missing = [text for text in added if f" {text.split()[0]} " not in line]
        lines.append(line if line.startswith("#") else " ".join([line, *missing]))
    return lines


def _toml(found: dict[str, Any], left_out: Iterable[LeftOut]) -> str:
    document = tomlkit.document()
    document.add(tomlkit.comment("Settings for kohya's sd-scripts, written by LoRA Studio:"))
    document.add(tomlkit.comment("accelerate launch sdxl_train_network.py --config_file THIS_FILE"))
    for item in left_out:
        document.add(tomlkit.comment(" ".join(f"Not exported: {item.name} = {item.value}. {item.why}".split())))
    for name, value in found.items():
        if value not in ("", None):
            document.add(name, tomlkit.item(value))
    return tomlkit.dumps(document)
