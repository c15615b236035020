"""The cells of a sweep: their order, their files and their place in the grid. Reads no weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lora_studio.lora.header import LoraFile
from lora_studio.settings.job_specs import SweepJob
from lora_studio.settings.sample_prompts import fill_trigger


@dataclass(frozen=True)
class CellKey:
    """Identifies a cell. `lora` counts from 1 in the job's order, 0 is the base alone; `prompt` is filled in."""

    base: str
    lora: int
    strength: float
    prompt: str


@dataclass(frozen=True)
class SweepRow:
    """A row of the grid: one base, LoRA (counted from 1; 0: none) and strength, with a cell per prompt."""

    base: str
    lora: int
    strength: float
    cells: list[CellKey]


@dataclass(frozen=True)
class SweepPlan:
    """All cells of a job; `loras` are in the job's order."""

    job: SweepJob
    loras: Sequence[LoraFile]

    @cached_property
    def bases(self) -> list[str]:
        """The bases without repetitions."""
        return list(dict.fromkeys(self.job.bases))

    @cached_property
    def strengths(self) -> list[float]:
        """The strengths without repetitions, in ascending order."""
        return sorted(set(self.job.strengths))

    @cached_property
    def cells(self) -> list[CellKey]:
        """All cells in the order of generation: the base alone first, then each LoRA from strength 1 outwards."""
        outwards = sorted(self.strengths, key=lambda strength: (abs(strength - 1), strength))
        found = []
        for base in self.bases:
            if 0 in outwards or not self.loras:
                prompts = dict.fromkeys(prompt for prompts in self.prompt_variants for prompt in prompts)
                found += [CellKey(base, 0, 0.0, prompt) for prompt in prompts]
            for number, lora in enumerate(self.loras, 1):
                found += [
                    CellKey(base, number, strength, prompt)
                    for strength in outwards
                    if strength
                    for prompt in dict.fromkeys(self.prompts(lora))
                ]
        return found

    @property
    def prompt_variants(self) -> list[list[str]]:
        """The prompts for each LoRA; without LoRAs, those for the base alone."""
        return [self.prompts(lora) for lora in self.loras] or [self.prompts(None)]

    def prompts(self, lora: LoraFile | None) -> list[str]:
        """Return the prompts for this LoRA, with its trigger word filled in; the job's takes precedence."""
        trigger_word = self.job.trigger_word or (lora.trigger_word if lora else "")
        return [fill_trigger(prompt, trigger_word) for prompt in dict.fromkeys(self.job.prompts)]

    def lora(self, key: CellKey) -> LoraFile | None:
        """Return the LoRA of a cell; None for the base alone."""
        return self.loras[key.lora - 1] if key.lora else None

    def path(self, key: CellKey) -> Path:
        """Return the file of a cell below the sweep's folder; numbered, since names may be invalid in file names."""
        base, prompt = self.bases.index(key.base) + 1, self._prompt_numbers[key.prompt]
        return Path("cells", f"base{base}-lora{key.lora}-{key.strength:g}-prompt{prompt:02d}.png")

    def rows(self) -> Iterator[SweepRow]:
        """Yield the rows of the grid in order; strength 0 is in every section."""
        for base in self.bases:
            if not self.loras:
                yield SweepRow(base, 0, 0.0, [CellKey(base, 0, 0.0, text) for text in self.prompts(None)])
            for number, lora in enumerate(self.loras, 1):
                for strength in self.strengths:
                    cells = [CellKey(base, number if strength else 0, strength, text) for text in self.prompts(lora)]
                    yield SweepRow(base, number, strength, cells)

    def heading(self, base: str, lora: int) -> str:
        """Return the heading of a base's and LoRA's section of the grid; empty if there is only one section."""
        parts = [base_label(base)] if len(self.bases) > 1 else []
        parts += [self.lora_labels[lora - 1]] if len(self.loras) > 1 else []
        return " · ".join(parts)

    @cached_property
    def lora_labels(self) -> list[str]:
        """The names of the LoRAs, with their folder where two names are equal."""
        names = [lora.name for lora in self.loras]
        return [
            name if names.count(name) == 1 else f"{lora.path.parent.name}/{name}"
            for lora, name in zip(self.loras, names, strict=True)
        ]

    @cached_property
    def _prompt_numbers(self) -> dict[str, int]:
        return {prompt: number for number, prompt in enumerate(dict.fromkeys(cell.prompt for cell in self.cells), 1)}


def base_label(base: str) -> str:
    """Return a base's name for display: the last part of a path."""
    path = Path(base).expanduser()
    return (path.name if path.exists() else base).removesuffix(".safetensors")


def strength_label(strength: float) -> str:
    """Return a strength for display."""
    return f"{strength:g}" if strength else "0 (no LoRA)"
