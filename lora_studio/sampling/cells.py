"""The cells of a sweep: their axes, their order, their files and their place in the grid. Reads no weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path

from lora_studio.lora.header import LoraFile
from lora_studio.models.catalogue import find_base
from lora_studio.settings.choices import SweepAxis
from lora_studio.settings.job_specs import SweepJob
from lora_studio.settings.sample_prompts import fill_trigger, negative_prompt_for

COLUMNS_FIRST = (SweepAxis.STRENGTH, SweepAxis.SEED, SweepAxis.LORA, SweepAxis.BASE, SweepAxis.PROMPT)
ROWS_FIRST = (SweepAxis.PROMPT, SweepAxis.SEED, SweepAxis.LORA, SweepAxis.BASE, SweepAxis.STRENGTH)
# From the outermost pages to the innermost.
PAGES_FIRST = (SweepAxis.BASE, SweepAxis.LORA, SweepAxis.SEED, SweepAxis.PROMPT, SweepAxis.STRENGTH)
EMPTY_PROMPT = "(empty)"


@dataclass(frozen=True)
class CellKey:
    """Identifies a cell. `lora` counts from 1 in the job's order, 0 is the base alone; `prompt` is filled in."""

    base: str
    lora: int
    strength: float
    prompt: str
    seed: int


@dataclass(frozen=True)
class AppliedLora:
    """A LoRA with its strengths in the UNet and in the text encoders."""

    file: LoraFile
    unet: float
    text_encoder: float

    @property
    def prompt_text(self) -> str:
        """The LoRA as A1111's prompts write it: `<lora:NAME:STRENGTH>`, or `<lora:NAME:TEXT_ENCODER:UNET>`."""
        both = f"{self.unet:g}" if self.unet == self.text_encoder else f"{self.text_encoder:g}:{self.unet:g}"
        return f"<lora:{self.file.name}:{both}>"


@dataclass(frozen=True)
class StrengthGroup:
    """The cells of one base, LoRA (counted from 1; 0: none) and strength."""

    base: str
    lora: int
    strength: float
    cells: list[CellKey]


@dataclass(frozen=True)
class Arrangement:
    """The axes of a grid's rows and columns, and which value of each other axis is shown, by index.

    An axis that `page` does not have shows its `SweepPlan.default_index`.
    """

    rows: SweepAxis
    columns: SweepAxis
    page: Mapping[SweepAxis, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepPlan:
    """All cells of a job; `loras` and `stacked`, which are in all cells, are in the job's order."""

    job: SweepJob
    loras: Sequence[LoraFile]
    stacked: Sequence[LoraFile] = ()

    @cached_property
    def bases(self) -> list[str]:
        """The bases without repetitions."""
        return list(dict.fromkeys(self.job.bases))

    @cached_property
    def strengths(self) -> list[float]:
        """The strengths without repetitions, in ascending order; without LoRAs, 0 alone."""
        return sorted(set(self.job.strengths)) if self.loras else [0.0]

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds without repetitions."""
        return list(dict.fromkeys(self.job.seeds))

    @cached_property
    def templates(self) -> list[str]:
        """The prompts without repetitions, as the job has them."""
        return list(dict.fromkeys(self.job.prompts))

    @cached_property
    def cells(self) -> list[CellKey]:
        """All cells in the order of generation: the base alone first, then each LoRA from strength 1 outwards."""
        outwards = sorted(self.strengths, key=lambda strength: (abs(strength - 1), strength))
        numbers = range(1, len(self.loras) + 1)
        found = []
        for base in self.bases:
            if 0 in outwards:
                prompts = [prompt for number in numbers or [0] for prompt in self.prompts(base, number)]
                found += [CellKey(base, 0, 0.0, prompt, seed) for seed in self.seeds for prompt in prompts]
            found += [
                CellKey(base, number, strength, prompt, seed)
                for number in numbers
                for strength in outwards
                if strength
                for seed in self.seeds
                for prompt in self.prompts(base, number)
            ]
        return list(dict.fromkeys(found))

    def prompts(self, base: str, lora: int) -> list[str]:
        """Return the prompts for a base and a LoRA (0: none).

        They have the LoRA's trigger word, of which the job's takes precedence, and the base's quality tags if the job
        asks for them.
        """
        return self._filled_prompts[base][lora]

    def negative_prompt(self, base: str) -> str:
        """Return the negative prompt for a base."""
        return negative_prompt_for(self.job.negative_prompt, base)

    def lora(self, key: CellKey) -> LoraFile | None:
        """Return the LoRA of a cell; None for the base alone."""
        return self.loras[key.lora - 1] if key.lora else None

    def applied(self, key: CellKey) -> list[AppliedLora]:
        """Return all LoRAs of a cell with their strengths: the tested one, then the stacked ones."""
        tested, own = self.lora(key), self.job.text_encoder_strength
        found = [AppliedLora(tested, key.strength, key.strength if own is None else own)] if tested else []
        for lora, given in zip(self.stacked, self.job.with_loras, strict=True):
            text = given.strength if given.text_encoder_strength is None else given.text_encoder_strength
            found.append(AppliedLora(lora, given.strength, text))
        return found

    def path(self, key: CellKey) -> Path:
        """Return the file of a cell below the sweep's folder; numbered, since names may be invalid in file names.

        The seed is named for all seeds but the first.
        """
        base, prompt = self.bases.index(key.base) + 1, self._prompt_numbers[key.prompt]
        seed = "" if key.seed == self.seeds[0] else f"-seed{key.seed}"
        strength = f"{key.strength:g}" if float(f"{key.strength:g}") == key.strength else repr(key.strength)
        return Path("cells", f"base{base}-lora{key.lora}-{strength}-prompt{prompt:02d}{seed}.png")

    def labels(self, axis: SweepAxis) -> list[str]:
        """Return the values of an axis for display, in order."""
        match axis:
            case SweepAxis.PROMPT:
                filled = {tuple(self._filled_templates[number]) for number in self._lora_numbers}
                return [text or EMPTY_PROMPT for text in (filled.pop() if len(filled) == 1 else self.templates)]
            case SweepAxis.STRENGTH:
                return [strength_label(strength) for strength in self.strengths]
            case SweepAxis.SEED:
                return [str(seed) for seed in self.seeds]
            case SweepAxis.LORA:
                return self.lora_labels or ["none"]
            case SweepAxis.BASE:
                return [base_label(base) for base in self.bases]

    def count(self, axis: SweepAxis) -> int:
        """Return the number of values of an axis."""
        return len(self.labels(axis))

    def default_index(self, axis: SweepAxis) -> int:
        """Return the index of the value that is shown first: the strength nearest to 1, else the first one."""
        if axis is not SweepAxis.STRENGTH:
            return 0
        return min(range(len(self.strengths)), key=lambda index: abs(self.strengths[index] - 1))

    @cached_property
    def arrangement(self) -> Arrangement:
        """The arrangement that the job asks for.

        Where it leaves an axis open, columns are strengths and rows are prompts, or else the next axis in
        COLUMNS_FIRST or ROWS_FIRST with several values.
        """
        columns = self.job.columns or self._first_with_several(COLUMNS_FIRST, self.job.rows)
        return Arrangement(self.job.rows or self._first_with_several(ROWS_FIRST, columns), columns)

    def page_axes(self, arrangement: Arrangement) -> list[SweepAxis]:
        """Return the axes with several values that are neither rows nor columns, the outermost first."""
        shown = (arrangement.rows, arrangement.columns)
        return [axis for axis in PAGES_FIRST if axis not in shown and self.count(axis) > 1]

    def pages(self) -> Iterator[Arrangement]:
        """Yield all pages of the job's arrangement."""
        axes = self.page_axes(self.arrangement)
        for indices in product(*(range(self.count(axis)) for axis in axes)):
            yield Arrangement(self.arrangement.rows, self.arrangement.columns, dict(zip(axes, indices, strict=True)))

    def page_label(self, page: Arrangement) -> str:
        """Return what is the same in all cells of a page and not in others; empty if there is only one page."""
        return " · ".join(axis_value(axis, self.labels(axis)[index]) for axis, index in page.page.items())

    def strength_groups(self) -> Iterator[StrengthGroup]:
        """Yield the cells by base, LoRA and strength, over prompts and seeds; strength 0 is in every LoRA's."""
        for base, number, strength in product(self.bases, self._lora_numbers, self.strengths):
            shown = number if strength else 0
            prompts = self.prompts(base, number)
            keys = [CellKey(base, shown, strength, text, seed) for seed in self.seeds for text in prompts]
            yield StrengthGroup(base, number, strength, list(dict.fromkeys(keys)))

    def table(self, page: Arrangement) -> list[list[CellKey]]:
        """Return the cells of a page by rows; strength 0 is in every page."""
        return [
            [
                self._key({**page.page, page.rows: row, page.columns: column})
                for column in range(self.count(page.columns))
            ]
            for row in range(self.count(page.rows))
        ]

    @cached_property
    def lora_labels(self) -> list[str]:
        """The names of the LoRAs, with their folder where two names are equal."""
        names = [lora.name for lora in self.loras]
        return [
            name if names.count(name) == 1 else f"{lora.path.parent.name}/{name}"
            for lora, name in zip(self.loras, names, strict=True)
        ]

    @property
    def _lora_numbers(self) -> Sequence[int]:
        return range(1, len(self.loras) + 1) or [0]

    @cached_property
    def _filled_templates(self) -> list[list[str]]:
        """The prompts with the trigger word for each number of a LoRA."""
        words = [self.job.trigger_word or word for word in ("", *(lora.trigger_word for lora in self.loras))]
        return [[fill_trigger(prompt, word) for prompt in self.templates] for word in words]

    @cached_property
    def _filled_prompts(self) -> dict[str, list[list[str]]]:
        """The prompts for each base and number of a LoRA."""
        found = {}
        for base in self.bases:
            known = find_base(base) if self.job.quality_tags else None
            add = known.prompt if known else str
            found[base] = [[add(text) for text in texts] for texts in self._filled_templates]
        return found

    def _key(self, point: Mapping[SweepAxis, int]) -> CellKey:
        """Return the cell at a place of the axes, by index; the default of each axis that is not given."""
        index = {axis: point.get(axis, self.default_index(axis)) for axis in SweepAxis}
        base = self.bases[index[SweepAxis.BASE]]
        strength = self.strengths[index[SweepAxis.STRENGTH]]
        lora = self._lora_numbers[index[SweepAxis.LORA]]
        return CellKey(
            base=base,
            lora=lora if strength else 0,
            strength=strength,
            prompt=self.prompts(base, lora)[index[SweepAxis.PROMPT]],
            seed=self.seeds[index[SweepAxis.SEED]],
        )

    def _first_with_several(self, order: Sequence[SweepAxis], taken: SweepAxis | None) -> SweepAxis:
        free = [axis for axis in order if axis is not taken]
        return next((axis for axis in free if self.count(axis) > 1), free[0])

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


def axis_value(axis: SweepAxis, label: str) -> str:
    """Return a value of an axis with the axis's name where the value alone would not say what it is."""
    return f"{axis} {label}" if axis in (SweepAxis.SEED, SweepAxis.STRENGTH) else label
