"""Translate arguments of sd-scripts to the settings of a training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from lora_studio.errors import validation_message
from lora_studio.interop.arguments import ARGUMENTS, NOT_AVAILABLE, NOT_NEEDED, OURS, WITHOUT_EFFECT, LeftOut
from lora_studio.interop.network import read_network
from lora_studio.interop.optimizer import read_optimizer, read_rates, read_schedule
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe

# Arguments that several settings depend on.
NETWORK = ("network_module", "network_dim", "network_alpha", "network_dropout", "network_args")
OPTIMIZER = ("optimizer_type", "optimizer_args", "use_8bit_adam", "use_lion_optimizer")
RATES = ("learning_rate", "unet_lr", "text_encoder_lr", "network_train_unet_only", "network_train_text_encoder_only")
SCHEDULE = (
    "lr_scheduler",
    "lr_scheduler_type",
    "lr_scheduler_args",
    "lr_scheduler_num_cycles",
    "lr_scheduler_power",
    "lr_scheduler_min_lr_ratio",
    "lr_warmup_steps",
)
LENGTH = ("max_train_epochs", "max_train_steps", "save_every_n_epochs")
# Arguments that are fields of the job.
JOB_FIELDS = {
    "pretrained_model_name_or_path": "base",
    "train_data_dir": "dataset",
    "reg_data_dir": "regularization",
    "output_name": "name",
    "vae": "vae",
    "network_weights": "network_weights",
    "metadata_trigger_phrase": "trigger_word",
}
# Settings that the studio records in a LoRA's metadata beside sd-scripts'.
STUDIO_SETTINGS = ("ema_decay", "base_precision", "stop_text_encoder_training", "unmasked_weight")
# The settings of samples, which the studio draws by itself where a file has no prompts.
_SAMPLES = ("sample_every_n_epochs", "sample_every_n_steps", "sample_at_first", "sample_sampler")
_DEFAULT_STEPS = 1600  # of sd-scripts
_MAX_EPOCHS = 10_000  # of the recipe
_TRIGGER = "trigger:"  # as which the studio, and others, write the trigger word into training_comment


class _RecipeFields(*Recipe.__bases__):  # type: ignore[misc]
    """The recipe's settings, each checked by itself."""


class Translation:
    """The settings that arguments of sd-scripts mean: plain values of the recipe and of the job.

    `left_out` lists every argument that was not carried over. With `complete`, a missing argument means sd-scripts'
    default; else its setting is not among the values.
    """

    def __init__(self, arguments: Mapping[str, Any], *, complete: bool) -> None:
        self.recipe: dict[str, Any] = {}
        self.job: dict[str, Any] = {}
        self.left_out: list[LeftOut] = []
        self._given = {name: None if value == "" else value for name, value in arguments.items()}
        self._complete = complete
        self._read_single()
        self._read_groups()
        self._read_job()
        self._read_samples()
        self._list_others()
        self._check_values()

    def _take(self, names: Iterable[str]) -> dict[str, Any]:
        """Return and remove the arguments that are given; {} means that none is."""
        return {name: self._given.pop(name) for name in names if name in self._given}

    def _read_single(self) -> None:
        if (other := self._given.pop("caption_extention", None)) is not None:  # sd-scripts accepts this, too
            self._given.setdefault("caption_extension", other)
        for argument in ARGUMENTS:
            if argument.name not in self._given and not self._complete:
                continue
            value = self._given.pop(argument.name, None)
            if value is None:
                if argument.default is not OURS:
                    self.recipe[argument.setting] = argument.default
                continue
            try:
                self.recipe[argument.setting] = argument.read(value)
            except (ArithmeticError, IndexError, TypeError, ValueError):
                self._leave_out(argument.name, value, "This value cannot be read.")
        for name in STUDIO_SETTINGS:
            if (value := self._given.pop(name, None)) is not None:
                self.recipe[name] = value
        if self._given.get("masked_loss") and self.recipe.get("masked_loss") == "alpha":
            del self._given["masked_loss"]  # it turns on what alpha_mask turns on alone

    def _read_groups(self) -> None:
        schedule = self._take(SCHEDULE)
        if schedule or self._complete:
            self._add(*read_schedule(schedule))
        network, optimizer, rates = (self._take(names) for names in (NETWORK, OPTIMIZER, RATES))
        if network or self._complete:
            self._add(*read_network(network))
        if optimizer or self._complete:
            self._add(*read_optimizer(optimizer, warmup=bool(schedule.get("lr_warmup_steps"))))
        if rates or self._complete:
            self.recipe |= read_rates(rates)
        stop = self.recipe.get("stop_text_encoder_training")
        if stop and not self.recipe.get("unet_lr", True):
            del self.recipe["stop_text_encoder_training"]
            self._leave_out("stop_text_encoder_training", stop, "Only the text encoders are trained.", matters=False)
        if self.recipe.get("dim_from_weights") is True:  # sd-scripts ignores them then
            self.recipe |= {"block_dims": "", "conv_dim": None, "conv_alpha": None, "rank_stabilized": False}
        length = self._take(LENGTH)
        if length or self._complete:
            self._read_length(length)

    def _read_length(self, given: Mapping[str, Any]) -> None:
        """Read epochs and steps: sd-scripts ignores its steps if it is given epochs, and trains 1600 without both."""
        epochs, steps = given.get("max_train_epochs"), given.get("max_train_steps")
        if epochs:
            if steps:
                self._leave_out(
                    "max_train_steps", steps, "sd-scripts ignores it beside max_train_epochs.", matters=False
                )
            self.recipe |= {"epochs": epochs, "max_train_steps": None}
        else:
            steps = steps or _DEFAULT_STEPS
            self.recipe |= {"epochs": _epochs_of(steps), "max_train_steps": steps}
        self.recipe["save_every_n_epochs"] = given.get("save_every_n_epochs") or self.recipe["epochs"]

    def _read_job(self) -> None:
        for name, field in JOB_FIELDS.items():
            if value := self._given.pop(name, None):
                self.job[field] = value
        comment = str(self._given.pop("training_comment", None) or "")
        if comment.startswith(_TRIGGER):
            self.job.setdefault("trigger_word", comment.removeprefix(_TRIGGER).strip())
        elif comment:
            self._leave_out("training_comment", comment, "The studio has notes of a project instead.", matters=False)

    def _read_samples(self) -> None:
        """Read sample prompts that are given as lines; a file of them has been read before."""
        prompts = self._given.pop("sample_prompts", None)
        if isinstance(prompts, list):
            self.recipe["sample_prompts"] = prompts
        elif prompts:
            self._leave_out("sample_prompts", prompts, "This file cannot be read: set sample_prompts.", matters=False)
        if not isinstance(prompts, list):
            for name in _SAMPLES:
                self.recipe.pop(name, None)

    def _list_others(self) -> None:
        for name, value in self._given.items():
            if _is_off(value) or _is_default(name, value):
                continue
            if name in NOT_NEEDED:
                self._leave_out(name, value, NOT_NEEDED[name], matters=False)
            elif name.startswith(("metadata_", "huggingface_", "save_state_to_", "offload_", "zero3_", "ddp_")):
                self._leave_out(name, value, "Set it when you release the LoRA, or it is not needed.", matters=False)
            else:
                self._leave_out(name, value, NOT_AVAILABLE.get(name, "The studio does not know this argument."))

    def _check_values(self) -> None:
        """Convert the values to those of the recipe and the job; remove those that they cannot have, with the reason.

        Values that contradict each other stay: they are refused when the recipe is used.
        """
        for values, model in ((self.recipe, _RecipeFields), (self.job, TrainJob)):
            try:
                model.model_validate(values)
            except ValidationError as error:
                for item in error.errors():
                    name = str(item["loc"][0]) if item["loc"] else ""
                    if name in values:
                        self._leave_out(name, values.pop(name), f"It {validation_message(item)}.")
        checked = _RecipeFields.model_validate(self.recipe).model_dump(mode="json")
        self.recipe = {name: checked[name] for name in self.recipe}

    def _add(self, values: Mapping[str, Any], left_out: Iterable[LeftOut]) -> None:
        self.recipe |= values
        self.left_out += left_out

    def _leave_out(self, name: str, value: Any, why: str, *, matters: bool = True) -> None:
        self.left_out.append(LeftOut(name, value, why, matters))


def _epochs_of(steps: Any) -> int:
    """Return enough epochs for a number of steps: each has at least one."""
    try:
        return min(max(1, int(steps)), _MAX_EPOCHS)
    except (TypeError, ValueError, OverflowError):
        return _MAX_EPOCHS


def _is_off(value: Any) -> bool:
    return value in (None, False, [], {}) or str(value).lower() in ("none", "false")


def _is_default(name: str, value: Any) -> bool:
    """Return True for a value with which sd-scripts does nothing."""
    if name not in WITHOUT_EFFECT:
        return value in (0, "0", "0.0")
    default = WITHOUT_EFFECT[name]
    return bool(value == default or str(value) == str(default))
