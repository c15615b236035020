"""Which pictures a sweep has and where each stands, in the grid and on disk. No weights are read for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lora_studio.lora.header import LoraFile
from lora_studio.settings.job_specs import SweepJob


@dataclass(frozen=True)
class CellKey:
    """Which cell: `lora` counts from 1 in the job's order, 0 is the base alone; `prompt` has its trigger word."""

    base: str
    lora: int
    strength: float
    prompt: str


@dataclass(frozen=True)
class SweepRow:
    """The cells of one base, LoRA (counted from 1) and strength, a prompt each; strength 0's are the base's own."""

    base: str
    lora: int
    strength: float
    cells: list[CellKey]


@dataclass(frozen=True)
class SweepPlan:
    """All cells of a job; `loras` are the job's, in its order."""

    job: SweepJob
    loras: Sequence[LoraFile]

    @cached_property
    def bases(self) -> list[str]:
        """The bases, each once."""
        return list(dict.fromkeys(self.job.bases))

    @cached_property
    def strengths(self) -> list[float]:
        """The strengths, each once, from low to high."""
        return sorted(set(self.job.strengths))

    @cached_property
    def cells(self) -> list[CellKey]:
        """All cells in the order of drawing: the bare base first, then each LoRA from its usual strength outwards."""
        outwards = sorted(self.strengths, key=lambda strength: (abs(strength - 1), strength))
        found = []
        for base in self.bases:
            if 0 in outwards:
                prompts = dict.fromkeys(prompt for lora in self.loras for prompt in self.prompts(lora))
                found += [CellKey(base, 0, 0.0, prompt) for prompt in prompts]
            for number, lora in enumerate(self.loras, 1):
                found += [
                    CellKey(base, number, strength, prompt)
                    for strength in outwards
                    if strength
                    for prompt in dict.fromkeys(self.prompts(lora))
                ]
        return found

    def prompts(self, lora: LoraFile) -> list[str]:
        """The prompts as drawn with this LoRA."""
        trigger_word = self.job.trigger_word or lora.trigger_word
        return [fill_trigger(prompt, trigger_word) for prompt in dict.fromkeys(self.job.prompts)]

    def lora(self, key: CellKey) -> LoraFile | None:
        """The LoRA of a cell; None for the bare base."""
        return self.loras[key.lora - 1] if key.lora else None

    def path(self, key: CellKey) -> Path:
        """Where a cell lies in the sweep's folder. Base, LoRA and prompt are numbers: their names may be anything."""
        base, prompt = self.bases.index(key.base) + 1, self._prompt_numbers[key.prompt]
        return Path("cells", f"base{base}-lora{key.lora}-{key.strength:g}-prompt{prompt:02d}.png")

    def rows(self) -> Iterator[SweepRow]:
        """The rows of the grid in its order; strength 0 comes in every section."""
        for base in self.bases:
            for number, lora in enumerate(self.loras, 1):
                for strength in self.strengths:
                    cells = [CellKey(base, number if strength else 0, strength, text) for text in self.prompts(lora)]
                    yield SweepRow(base, number, strength, cells)

    def heading(self, base: str, lora: int) -> str:
        """What tells one base's and LoRA's part of the grid from the others; empty if there is only one."""
        parts = [base_label(base)] * (len(self.bases) > 1) + [self.lora_labels[lora - 1]] * (len(self.loras) > 1)
        return " · ".join(parts)

    @cached_property
    def lora_labels(self) -> list[str]:
        """The LoRAs' names, with their folders' where two have the same."""
        names = [lora.name for lora in self.loras]
        return [
            name if names.count(name) == 1 else f"{lora.path.parent.name}/{name}"
            for lora, name in zip(self.loras, names, strict=True)
        ]

    @cached_property
    def _prompt_numbers(self) -> dict[str, int]:
        return {prompt: number for number, prompt in enumerate(dict.fromkeys(cell.prompt for cell in self.cells), 1)}


def fill_trigger(prompt: str, trigger_word: str) -> str:
    """Put the trigger word in the place of {trigger}; without one its place among the commas goes too."""
    filled = prompt.replace("{trigger}", trigger_word)
    if filled == prompt or trigger_word:
        return filled
    return ", ".join(part.strip() for part in filled.split(",") if part.strip())


def base_label(base: str) -> str:
    """A base's name for people: of a path, its last part."""
    path = Path(base).expanduser()
    return (path.name if path.exists() else base).removesuffix(".safetensors")


def strength_label(strength: float) -> str:
    """A strength for people."""
    return f"{strength:g}" if strength else "0 (no LoRA)"
