"""A planned run: its recipe with reasons, length and estimates, as JSON values and as Markdown."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from lora_studio import guide
from lora_studio.planning.cautions import Caution
from lora_studio.planning.memory_ladder import Rung
from lora_studio.planning.planned_memory import ESTIMATED, MEASURED, PlannedMemory
from lora_studio.planning.recommend import Reason, times_as_text
from lora_studio.planning.steps import StepCount
from lora_studio.planning.timing import SecondsRange, describe_range
from lora_studio.settings.choices import LoraKind
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.values import format_value


class Plan(BaseModel):
    """A planned run: recipe, number of steps and estimates. `repeats` is the folders' average if they set them.

    `on_cpu` says that it is planned for this machine's CPU, whose memory is known only once a run has measured it: its
    estimates are those of a GPU. With several processes batch size and memory are those of each GPU.
    """

    model_config = ConfigDict(frozen=True)

    images: int
    assumed: bool
    kind: LoraKind
    base: str
    base_about: str
    tier: guide.Tier
    recipe: Recipe
    reasons: list[Reason]
    repeats: int
    num_processes: int
    steps: StepCount
    memory: PlannedMemory
    ladder: list[Rung]
    seconds: SecondsRange
    lora_mib: float
    warnings: list[Caution]
    tagger: str
    tagging: str
    base_advice: str
    prediction_type: str
    on_cpu: bool

    @property
    def vram_gib(self) -> float:
        """The planned GPU memory in GiB."""
        return self.memory.gib

    @property
    def vram_parts(self) -> dict[str, float]:
        """The planned GPU memory in GiB by its use."""
        return self.memory.parts

    @property
    def vram_phases(self) -> dict[str, float]:
        """The planned GPU memory in GiB of each phase of the run."""
        return self.memory.phases

    def summary(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        named = ("network_dim", "network_alpha", "unet_lr", "text_encoder_lr", "batch_size", "epochs", "resolution")
        return {
            "images": self.images,
            "assumed": self.assumed,
            "kind": self.kind.value,
            "base": self.base,
            "prediction_type": self.prediction_type,
            "tier": self.tier.name,
            **{name: getattr(self.recipe, name) for name in named},
            "optimizer": self.recipe.optimizer.value,
            "repeats": self.repeats,
            "steps_per_epoch": self.steps.steps_per_epoch,
            "total_steps": self.steps.total_steps,
            "on_cpu": self.on_cpu,
            "num_processes": self.num_processes,
            "vram_gib": self.vram_gib,
            "vram_range": [self.memory.least, self.memory.most],
            "vram_source": self.memory.source,
            "vram_parts": self.vram_parts,
            "vram_phases": self.vram_phases,
            "ram_gib": self.memory.ram_gib,
            "memory_ladder": [rung.model_dump(mode="json") for rung in self.ladder],
            "seconds": self.seconds.middle,
            "seconds_range": [self.seconds.low, self.seconds.high],
            "seconds_source": self.seconds.source,
            "lora_mib": self.lora_mib,
            "tagger": self.tagger,
            "recipe": self.recipe.non_defaults(),
            "reasons": [reason.model_dump(mode="json") for reason in self.reasons],
            "warnings": [warning.model_dump() for warning in self.warnings],
        }

    @property
    def differences(self) -> list[Reason]:
        """The reasons of what the plan chose, and of what the caller set to other values than the defaults."""
        plain = self.recipe.non_defaults()
        return [reason for reason in self.reasons if not reason.given or reason.setting in plain]

    def describe(self) -> str:
        """Return the plan as Markdown: dataset, base, length, time, memory, the recipe with reasons, and cautions."""
        rows = [f"| {' | '.join(map(_cell, row))} |" for row in self._rows()]
        cautions = [f"- {_line(f'{caution.message} {caution.why}')}" for caution in self.warnings]
        parts = [
            f"# LoRA plan: {self.kind.value} on {_line(self.base)}",
            "\n".join(f"- **{name}:** {_line(text)}" for name, text in self._facts().items()),
            "## Recipe",
            "\n".join(["| Setting | Value | Why |", "| --- | --- | --- |", *rows]),
            "## To check",
            "\n".join(cautions) if cautions else "Nothing: the guide has no objections.",
        ]
        return "\n\n".join(parts)

    def _facts(self) -> dict[str, str]:
        source = "assumed to be square and of one size" if self.assumed else "counted"
        files = "UNet and text encoders" if self.recipe.trains_text_encoders else "UNet only"
        return {
            "Dataset": f"{self.images} images ({source}): a {self.tier.name} set, good for {self.tier.good_for}. "
            f"{self.tier.focus} {self.tagging}",
            "Base model": f"{self.base}, prediction type {self.prediction_type}. {self.base_advice}",
            "Length": f"{self.steps.total_steps:,} steps: every image is shown {times_as_text(self.repeats)} per "
            f"epoch, {self.steps.epochs} epochs of {self.steps.steps_per_epoch} steps, "
            f"{batch_as_text(self.recipe, self.num_processes)}.",
            "Time": f"roughly {describe_range(self.seconds)}, {self.seconds.source}.",
            "RAM" if self.on_cpu else "GPU memory": self._memory_as_text(),
            "File": f"{self.recipe.network_type.value} of {self.lora_mib:.0f} MiB, {files}.",
        }

    def _memory_as_text(self) -> str:
        memory = self.memory
        if self.on_cpu:
            return "not measured yet." if memory.ram_gib is None else f"{memory.ram_gib:.1f} GiB at most, {MEASURED}."
        if memory.is_range:
            blocks = "from all UNet blocks recomputed to none, as many as the GPU's memory needs"
            return f"roughly {memory.least:.1f} to {memory.most:.1f} GiB, {blocks}."
        return f"{'roughly ' if memory.source == ESTIMATED else ''}{memory.gib:.1f} GiB, {memory.source}."

    def _rows(self) -> list[tuple[str, str, str]]:
        return [
            (f"`{reason.setting}`", f"`{_code(format_value(reason.value))}`", reason.why) for reason in self.differences
        ]


def batch_as_text(recipe: Recipe, processes: int = 1) -> str:
    """Return the images of a step: "batch size 4", "batch size 2 × 2" if accumulated, "batch size 2 on 4 GPUs"."""
    size, count = recipe.batch_size, recipe.gradient_accumulation_steps
    gpus = f" on {processes} GPUs" if processes > 1 else ""
    return f"batch size {size} × {count}{gpus}" if count > 1 else f"batch size {size}{gpus}"


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", r"\|")


def _code(text: str) -> str:
    return " / ".join(text.splitlines()).replace("`", "'")
