"""One change at a time: which experiment a change belongs to, how several are split into runs, and what to try next.

The order is the guide's: learning rate, training length, network size, optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from lora_studio.errors import ConfigError
from lora_studio.guide import EXPERIMENTS, OPTIMIZERS, GuideRule
from lora_studio.ledger.records import RunRecord
from lora_studio.planning.optimizers import optimizer_errors
from lora_studio.settings.changes import SettingChange, setting_changes
from lora_studio.settings.declare import Group, setting_group
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.job_folder import JobState


class Experiment(StrEnum):
    """What a change tries, in the guide's order; OTHER comes last."""

    RATE = "unet_lr"
    LENGTH = "epochs"
    SIZE = "network_dim"
    OPTIMIZER = "optimizer"
    OTHER = "other"


BY_GROUP = {
    Group.RATES: Experiment.RATE,
    Group.NETWORK: Experiment.SIZE,
    Group.OPTIMIZER: Experiment.OPTIMIZER,
}
LENGTH_SETTINGS = (
    *("epochs", "repeats", "max_train_steps", "batch_size", "gradient_accumulation_steps"),
    *("stop_at_plateau", "stop_at_rise", "stop_at_break"),
)
SCHEDULE_PREFIX = "lr_"  # settings of the schedule change the rate
# Settings that change neither the weights nor the validation loss.
WITHOUT_EFFECT = ("save_format", "save_precision", "gradient_checkpointing", "cuda_graphs")
GROUPS_WITHOUT_EFFECT = (Group.SAMPLES, Group.LOGGING)
COUPLED = (("network_dim", "network_alpha"), ("conv_dim", "conv_alpha"))  # one change, if both change


@dataclass(frozen=True)
class Variant:
    """A run with one change: the parent's recipe with `changes`, which only work or make sense together."""

    experiment: Experiment
    changes: tuple[SettingChange, ...]
    recipe: Recipe


@dataclass(frozen=True)
class Suggestion:
    """The experiment to try next, with the guide's reason, and the run to change it in: the best one so far."""

    rule: GuideRule
    run: str


def experiment_of(name: str) -> Experiment | None:
    """Return the experiment that a change of this setting is; None if it does not affect the training."""
    group = setting_group(Recipe, name)
    if group in GROUPS_WITHOUT_EFFECT or name in WITHOUT_EFFECT:
        return None
    if name in LENGTH_SETTINGS:
        return Experiment.LENGTH
    if name.startswith(SCHEDULE_PREFIX):
        return Experiment.RATE
    return BY_GROUP.get(group, Experiment.OTHER)


def effective_changes(recipe: Recipe, before: Recipe) -> list[SettingChange]:
    """Return the changes that affect the training, in the guide's order of experiments."""
    changes = [change for change in setting_changes(recipe, before) if experiment_of(change.name) is not None]
    return sorted(changes, key=lambda change: _order(change.name))


def split_changes(recipe: Recipe, before: Recipe) -> list[Variant]:
    """Return one variant of `before` per change in `recipe`, in the guide's order; [] with fewer than two changes.

    Changes that cannot work alone stay together: dim and alpha, an optimizer and the rates that it needs. Changes that
    do not affect the training, like the sample prompts, are made in all variants.
    """
    groups: list[list[SettingChange]] = [[change] for change in effective_changes(recipe, before)]
    changed = {group[0].name for group in groups}
    for names in (*COUPLED, *_rates_of_optimizer(recipe, before, changed)):
        if changed.issuperset(names):
            _merge(groups, [group for group in groups if group[0].name in names])
    while len(groups) > 1 and (failing := next((group for group in groups if not _works(before, group)), None)):
        others = [group for group in groups if group is not failing]
        partner = next((group for group in others if _works(before, [*failing, *group])), others[0])
        _merge(groups, [failing, partner])
    if len(groups) < 2:
        return []
    common = [change for change in setting_changes(recipe, before) if experiment_of(change.name) is None]
    return [
        Variant(experiment_of(group[0].name) or Experiment.OTHER, tuple(group), _changed(before, [*group, *common]))
        for group in groups
    ]


def suggest_next(records: Sequence[RunRecord]) -> Suggestion | None:
    """Return the guide's first experiment that no run has tried alone, and the best run to start from.

    None before a run is complete, or once all four were tried.
    """
    done = [record for record in records if record.status.state is JobState.DONE]
    if not done:
        return None
    tried = {experiment for record in records if (experiment := single_experiment(record))}
    rule = next((rule for rule in EXPERIMENTS if Experiment(rule.code) not in tried), None)
    return None if rule is None else Suggestion(rule, best_run(done).name)


def single_experiment(record: RunRecord) -> Experiment | None:
    """Return the one experiment that a run made compared with its parent; None if it made none, or several."""
    kinds = {experiment_of(change.name) for change in record.recipe_changes} - {None}
    return next(iter(kinds)) if len(kinds) == 1 and not record.data_changes else None


def best_run(records: Sequence[RunRecord]) -> RunRecord:
    """Return the run with the lowest fixed-noise loss among those comparable with the latest one, else the latest."""
    measured = [record for record in records if record.validation_change is not None]
    if not measured:
        return records[-1]
    comparable = [record for record in measured if are_comparable(record, measured[-1])]
    return min(comparable, key=lambda record: record.validation_change or 0.0)


def are_comparable(one: RunRecord, other: RunRecord) -> bool:
    """Return whether the fixed-noise losses of two runs are of the same images, captions, base and objective."""
    inputs = [(each.data, each.job.base, each.base_hash, each.figures.split) for each in (one, other)]
    settings = {change.name for change in setting_changes(one.job.recipe, other.job.recipe)}
    return inputs[0] == inputs[1] and not any(_changes_loss(name) for name in settings)


def _changes_loss(name: str) -> bool:
    """Return whether a setting changes what the loss measures."""
    return name in ("validation_split", "resolution") or setting_group(Recipe, name) is Group.OBJECTIVE


def _order(name: str) -> tuple[int, int]:
    experiments, fields = list(Experiment), list(Recipe.model_fields)
    return experiments.index(experiment_of(name) or Experiment.OTHER), fields.index(name)


def _rates_of_optimizer(recipe: Recipe, before: Recipe, changed: set[str]) -> list[tuple[str, ...]]:
    """Return the changed rates together with the optimizer, if old and new optimizer need rates of another size."""
    old, new = (OPTIMIZERS[each.optimizer.value] for each in (before, recipe))
    if (old.learning_rate_free, old.rate_factor) == (new.learning_rate_free, new.rate_factor):
        return []
    return [("optimizer", *(name for name in changed if experiment_of(name) is Experiment.RATE))]


def _merge(groups: list[list[SettingChange]], together: list[list[SettingChange]]) -> None:
    """Replace some groups by one that has the changes of all, at the place of the last."""
    merged = [change for group in together for change in group]
    place = groups.index(together[-1])
    groups[place] = merged
    for group in together[:-1]:
        groups.remove(group)


def _works(before: Recipe, changes: Sequence[SettingChange]) -> bool:
    try:
        return not optimizer_errors(_changed(before, changes))
    except ConfigError:
        return False


def _changed(before: Recipe, changes: Sequence[SettingChange]) -> Recipe:
    return Recipe.parse(before.model_dump() | {change.name: change.value for change in changes})
