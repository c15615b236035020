"""The strength sweep: one seed, every LoRA at every strength for every prompt on every base, as one labelled grid.

Strength 0 is the base alone, so it is drawn once for all LoRAs. Cells are saved one by one, each with all that made it
written inside; what is there already is not drawn again.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import BaseModel

from lora_studio.config import SweepJob
from lora_studio.files import write_json
from lora_studio.project import Home
from lora_studio.runs import JobFolder, Report
from lora_studio.sampling.adapter import applied
from lora_studio.sampling.grid import Row, Section, draw_grid
from lora_studio.sampling.lora_file import LoraFile, read_lora
from lora_studio.sampling.measures import MEANING, measure
from lora_studio.sampling.pipeline import Painter, open_painter
from lora_studio.sampling.png_info import infotext, read_parameters, save_png
from lora_studio.training.drawing import Text
from lora_studio.training.text import truncated


class Cell(BaseModel):
    """One picture of a sweep. At strength 0 `lora` is None: it is the base's, and serves all LoRAs."""

    path: Path
    prompt: str
    strength: float
    seed: int
    lora: Path | None
    base: str


class SweepResult(BaseModel):
    """What a sweep made: `measures` holds a row of figures for each base, LoRA and strength, and what they mean."""

    grid: Path | None = None
    cells: list[Cell] = []
    measures: dict[str, Any] = {}
    stopped: bool = False


def sweep(
    job: SweepJob,
    folder: JobFolder,
    *,
    home: Home,
    report: Report,
    should_stop: Callable[[], bool],
    resume: bool = False,
) -> SweepResult:
    """Draw the cells of `job` into `folder`, then grid.png and measures.json of what is there.

    Cells with the same parameters that an earlier attempt left are kept, whether `resume` is set or not. A stop ends
    the cell at work, which is not saved. Raises InputError for a LoRA or base that cannot be used.
    """
    loras = [read_lora(path) for path in job.loras]
    work = _Work(job, folder, report, should_stop, loras, _planned(job, loras))
    for base in dict.fromkeys(job.bases):
        if should_stop():
            break
        _sweep_base(work, base, home)
    cells = [work.cells[key] for key in work.plan if key in work.cells]
    report("phase", message="Making the grid")
    measures = _measures(work)
    write_json(folder.path / "measures.json", measures)
    return SweepResult(
        grid=_write_grid(work) if cells else None,
        cells=cells,
        measures=measures,
        stopped=len(work.finished) < len(work.plan),
    )


@dataclass(frozen=True)
class _Key:
    """Which cell: `lora` counts from 1 in the job's order, 0 is the base alone; `prompt` has its trigger word."""

    base: str
    lora: int
    strength: float
    prompt: str


@dataclass
class _Work:
    """The state of a sweep. `finished` are the cells in `cells` and those that could not be drawn."""

    job: SweepJob
    folder: JobFolder
    report: Report
    should_stop: Callable[[], bool]
    loras: Sequence[LoraFile]
    plan: Sequence[_Key]
    cells: dict[_Key, Cell] = field(default_factory=dict)
    finished: set[_Key] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)

    @property
    def seconds_left(self) -> float | None:
        """From the mean time of the cells drawn so far."""
        if not self.seconds:
            return None
        return round((len(self.plan) - len(self.finished)) * sum(self.seconds) / len(self.seconds), 1)

    def lora(self, key: _Key) -> LoraFile | None:
        """The LoRA of a cell; None for the bare base."""
        return self.loras[key.lora - 1] if key.lora else None

    def path(self, key: _Key) -> Path:
        """Where a cell lies: base, LoRA and prompt are numbers, since their names may be anything."""
        base = list(dict.fromkeys(self.job.bases)).index(key.base) + 1
        prompt = list(dict.fromkeys(cell.prompt for cell in self.plan)).index(key.prompt) + 1
        return self.folder.path / "cells" / f"base{base}-lora{key.lora}-{key.strength:g}-prompt{prompt:02d}.png"

    def keep(self, key: _Key) -> Cell:
        """Take a picture that is on disk into the result."""
        lora = self.lora(key)
        self.finished.add(key)
        self.cells[key] = Cell(
            path=self.path(key),
            prompt=key.prompt,
            strength=key.strength,
            seed=self.job.seed,
            lora=lora.path if lora else None,
            base=key.base,
        )
        return self.cells[key]


@dataclass
class _Texts:
    """Texts encoded once, for as long as the text encoders stay as they are."""

    painter: Painter
    job: SweepJob
    known: dict[str, Text] = field(default_factory=dict)

    def prompt(self, text: str) -> Text:
        """An encoded prompt."""
        if text not in self.known:
            self.known[text] = self.painter.encode(text, clip_skip=self.job.clip_skip)
        return self.known[text]

    @cached_property
    def negative(self) -> Text:
        """The encoded negative prompt."""
        return self.painter.encode_negative(self.job.negative_prompt, clip_skip=self.job.clip_skip)


def fill_trigger(prompt: str, trigger_word: str) -> str:
    """Put the trigger word in the place of {trigger}; without one its place among the commas goes too."""
    filled = prompt.replace("{trigger}", trigger_word)
    if filled == prompt or trigger_word:
        return filled
    return ", ".join(part.strip() for part in filled.split(",") if part.strip())


def _prompts(job: SweepJob, lora: LoraFile) -> list[str]:
    """The prompts as drawn with this LoRA."""
    return [fill_trigger(prompt, job.trigger_word or lora.trigger_word) for prompt in dict.fromkeys(job.prompts)]


def _planned(job: SweepJob, loras: Sequence[LoraFile]) -> list[_Key]:
    """All cells in the order of drawing: the bare base first, then each LoRA from its usual strength outwards."""
    strengths = sorted(set(job.strengths), key=lambda strength: (abs(strength - 1), strength))
    plan = []
    for base in dict.fromkeys(job.bases):
        if 0 in strengths:
            prompts = dict.fromkeys(prompt for lora in loras for prompt in _prompts(job, lora))
            plan += [_Key(base, 0, 0.0, prompt) for prompt in prompts]
        for number, lora in enumerate(loras, 1):
            plan += [
                _Key(base, number, strength, prompt)
                for strength in strengths
                if strength
                for prompt in dict.fromkeys(_prompts(job, lora))
            ]
    return plan


def _sweep_base(work: _Work, base: str, home: Home) -> None:
    """Draw what is missing of one base; its memory is free again afterwards."""
    job, report = work.job, work.report
    painter = open_painter(
        base, home=home, precision=job.mixed_precision, on_progress=lambda message: report("phase", message=message)
    )
    try:
        keys = [key for key in work.plan if key.base == base]
        parameters = {key: _parameters(work, painter, key) for key in keys}
        for key in keys:
            if read_parameters(work.path(key)) == parameters[key]:
                work.keep(key)
        pending = [key for key in keys if key not in work.finished]
        for prompt in truncated(painter.base.tokenizers[0], sorted({key.prompt for key in pending})):
            report("warning", code="long_prompt", message=f"Only the first 75 tokens count of the prompt: {prompt}")
        texts = _Texts(painter, job)
        for number, group in groupby(pending, key=lambda key: key.lora):
            if number == 0:
                _draw(work, painter, texts, list(group), parameters)
            elif not work.should_stop():
                _draw_lora(work, painter, texts, list(group), parameters)
    finally:
        del painter
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _draw_lora(work: _Work, painter: Painter, texts: _Texts, keys: Sequence[_Key], parameters: dict[_Key, str]) -> None:
    """Draw the cells of one LoRA. `texts` are the base's, which hold for a LoRA that has no text encoder."""
    lora = work.lora(keys[0])
    assert lora is not None
    work.report("phase", message=f"Loading {lora.name}")
    with applied(painter.pipe, lora) as adapter:
        if adapter.matched < adapter.total:
            work.report(
                "warning",
                code="lora_partial",
                message=f"{keys[0].base} has only {adapter.matched} of the {adapter.total} layers of {lora.name}.",
            )
        for strength, group in groupby(keys, key=lambda key: key.strength):
            adapter.set_strength(strength)
            current = _Texts(painter, work.job) if lora.has_text_encoder else texts
            _draw(work, painter, current, list(group), parameters)


def _draw(work: _Work, painter: Painter, texts: _Texts, keys: Sequence[_Key], parameters: dict[_Key, str]) -> None:
    """Draw cells one by one, as the pipeline stands."""
    width, height = _size(work.job, painter)
    for key in keys:
        if work.should_stop():
            return
        started = time.monotonic()
        picture = painter.draw(
            texts.prompt(key.prompt),
            texts.negative,
            seed=work.job.seed,
            steps=work.job.steps,
            guidance=work.job.guidance,
            width=width,
            height=height,
            should_stop=work.should_stop,
        )
        if picture is not None:
            save_png(picture, work.path(key), parameters[key])
            work.seconds.append(time.monotonic() - started)
            _report_cell(work, work.keep(key))
        elif not work.should_stop():
            work.finished.add(key)
            work.report(
                "warning",
                code="not_finite",
                message=f"No picture at strength {key.strength:g} for {key.prompt!r}: the numbers overflowed.",
            )


def _report_cell(work: _Work, cell: Cell) -> None:
    values = cell.model_dump(mode="json") | {"path": cell.path.relative_to(work.folder.path).as_posix()}
    work.report("cell", done=len(work.finished), total=len(work.plan), seconds_left=work.seconds_left, **values)


def _size(job: SweepJob, painter: Painter) -> tuple[int, int]:
    """Width and height in px; the base's own where the job names none."""
    native = painter.base.native_resolution
    return job.width or native, job.height or native


def _parameters(work: _Work, painter: Painter, key: _Key) -> str:
    """All that decides how a cell looks, in A1111's form."""
    job, lora = work.job, work.lora(key)
    settings = _settings(job, painter.sampler, _size(job, painter))
    settings |= {"Model hash": painter.base.hash[:10], "Model": _label(key.base)}
    settings |= {"Clip skip": job.clip_skip, "Precision": str(painter.base.unet.dtype).removeprefix("torch.")}
    if lora is None:
        return infotext(key.prompt, job.negative_prompt, settings)
    settings["Lora hashes"] = f"{lora.name}: {lora.model_hash[:12]}"
    prompt = f"{key.prompt} <lora:{lora.name}:{key.strength:g}>".strip()
    return infotext(prompt, job.negative_prompt, settings)


def _settings(job: SweepJob, sampler: str, size: tuple[int, int]) -> dict[str, str | int | float]:
    return {
        "Steps": job.steps,
        "Sampler": sampler,
        "CFG scale": f"{job.guidance:g}",
        "Seed": job.seed,
        "Size": f"{size[0]}x{size[1]}",
    }


def _label(base: str) -> str:
    """A base's name for people: of a path, its last part."""
    path = Path(base).expanduser()
    return (path.name if path.exists() else base).removesuffix(".safetensors")


def _lora_labels(loras: Sequence[LoraFile]) -> list[str]:
    """The LoRAs' names, with their folders' where two have the same."""
    names = [lora.name for lora in loras]
    return [
        name if names.count(name) == 1 else f"{lora.path.parent.name}/{name}"
        for lora, name in zip(loras, names, strict=True)
    ]


def _rows(work: _Work) -> Iterator[tuple[str, int, float, list[_Key]]]:
    """Base, LoRA, strength and the cells of each row of the grid, in its order; strength 0 comes in every section."""
    for base in dict.fromkeys(work.job.bases):
        for number, lora in enumerate(work.loras, 1):
            for strength in sorted(set(work.job.strengths)):
                prompts = _prompts(work.job, lora)
                yield (
                    base,
                    number,
                    strength,
                    [_Key(base, number if strength else 0, strength, text) for text in prompts],
                )


def _measures(work: _Work) -> dict[str, Any]:
    """Figures of each row that has pictures, and what they mean."""
    labels, rows = _lora_labels(work.loras), []
    for base, number, strength, keys in _rows(work):
        pictures = {key.prompt: _open(work.cells[key].path) for key in keys if key in work.cells}
        bare = [_Key(base, 0, 0.0, key.prompt) for key in keys]
        references = {key.prompt: _open(work.cells[key].path) for key in bare if key in work.cells}
        if pictures:
            figures = measure(pictures, references)
            rows.append({"base": _label(base), "lora": labels[number - 1], "strength": strength, **figures})
    return {"meaning": MEANING, "rows": rows}


def _open(path: Path) -> Image.Image:
    with Image.open(path, formats=["PNG"]) as picture:
        return picture.convert("RGB")


def _write_grid(work: _Work) -> Path:
    """Draw and save grid.png; returns its path."""
    job, labels = work.job, _lora_labels(work.loras)
    sections = []
    for (base, number), rows in groupby(_rows(work), key=lambda row: row[:2]):
        parts = [_label(base)] * (len(job.bases) > 1) + [labels[number - 1]] * (len(labels) > 1)
        drawn = [
            Row(
                f"{strength:g}" if strength else "0 (no LoRA)",
                [work.cells[key].path if key in work.cells else None for key in keys],
            )
            for _, _, strength, keys in rows
        ]
        sections.append(Section(" · ".join(parts), drawn))
    variants = {tuple(_prompts(job, lora)) for lora in work.loras}
    prompts = list(variants.pop()) if len(variants) == 1 else list(dict.fromkeys(job.prompts))
    bases = ", ".join(dict.fromkeys(map(_label, job.bases)))
    with Image.open(next(iter(work.cells.values())).path) as first:
        settings = _settings(job, Painter.sampler, first.size)
    subtitle = f"{bases} · seed {job.seed} · {job.steps} steps · CFG {job.guidance:g} · {settings['Size']} px"
    path = work.folder.path / "grid.png"
    grid = draw_grid(", ".join(labels), subtitle, prompts, sections)
    settings |= {
        "Model": bases,
        "Lora hashes": ", ".join(f"{lora.name}: {lora.model_hash[:12]}" for lora in work.loras),
        "Prompts": " | ".join(prompts),
        "Strengths": ", ".join(f"{strength:g}" for strength in sorted(set(job.strengths))),
    }
    save_png(grid, path, infotext(prompts[0], job.negative_prompt, settings))
    return path
