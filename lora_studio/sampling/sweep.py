"""The strength sweep: one seed, every LoRA at every strength for every prompt on every base, as one labelled grid.

Strength 0 is the base alone, so it is drawn once for all LoRAs. Cells are saved one by one, each with all that made it
written inside; what is there already is not drawn again.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import BaseModel

from lora_studio.files import write_json
from lora_studio.lora.header import read_lora_header
from lora_studio.models.pipeline import TextEmbeddings
from lora_studio.models.text_encoding import truncated_captions
from lora_studio.sampling.adapter import apply_lora
from lora_studio.sampling.cells import CellKey, SweepPlan, base_label, strength_label
from lora_studio.sampling.grid import GridRow, GridSection, draw_grid
from lora_studio.sampling.measures import MEASURE_DESCRIPTIONS, measure
from lora_studio.sampling.pipeline import SamplingPipeline, load_sampling_pipeline
from lora_studio.sampling.png_info import infotext, read_parameters, save_png
from lora_studio.settings.job_specs import SweepJob
from lora_studio.workspace.job_folder import JobFolder, Report
from lora_studio.workspace.project import Home


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
    loras = [read_lora_header(path) for path in job.loras]
    work = _Work(job, folder, report, should_stop, SweepPlan(job, loras))
    for base in work.plan.bases:
        if should_stop():
            break
        _sweep_base(work, base, home)
    cells = [work.cells[key] for key in work.plan.cells if key in work.cells]
    report("phase", message="Making the grid")
    measures = _measures(work)
    write_json(folder.path / "measures.json", measures)
    return SweepResult(
        grid=_write_grid(work) if cells else None,
        cells=cells,
        measures=measures,
        stopped=len(work.finished) < len(work.plan.cells),
    )


@dataclass
class _Work:
    """The state of a sweep. `finished` are the cells in `cells` and those that could not be drawn."""

    job: SweepJob
    folder: JobFolder
    report: Report
    should_stop: Callable[[], bool]
    plan: SweepPlan
    cells: dict[CellKey, Cell] = field(default_factory=dict)
    finished: set[CellKey] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)

    @property
    def seconds_left(self) -> float | None:
        """From the mean time of the cells drawn so far."""
        if not self.seconds:
            return None
        return round((len(self.plan.cells) - len(self.finished)) * sum(self.seconds) / len(self.seconds), 1)

    def path(self, key: CellKey) -> Path:
        """Where a cell lies."""
        return self.folder.path / self.plan.path(key)

    def keep(self, key: CellKey) -> Cell:
        """Take a picture that is on disk into the result."""
        lora = self.plan.lora(key)
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

    pipeline: SamplingPipeline
    job: SweepJob
    known: dict[str, TextEmbeddings] = field(default_factory=dict)

    def prompt(self, text: str) -> TextEmbeddings:
        """An encoded prompt."""
        if text not in self.known:
            self.known[text] = self.pipeline.encode(text, clip_skip=self.job.clip_skip)
        return self.known[text]

    @cached_property
    def negative(self) -> TextEmbeddings:
        """The encoded negative prompt."""
        return self.pipeline.encode_negative(self.job.negative_prompt, clip_skip=self.job.clip_skip)


def _sweep_base(work: _Work, base: str, home: Home) -> None:
    """Draw what is missing of one base; its memory is free again afterwards."""
    job, report = work.job, work.report
    pipeline = load_sampling_pipeline(
        base, home=home, precision=job.mixed_precision, on_progress=lambda message: report("phase", message=message)
    )
    try:
        keys = [key for key in work.plan.cells if key.base == base]
        parameters = {key: _parameters(work, pipeline, key) for key in keys}
        for key in keys:
            if read_parameters(work.path(key)) == parameters[key]:
                work.keep(key)
        pending = [key for key in keys if key not in work.finished]
        for prompt in truncated_captions(pipeline.base.tokenizers[0], sorted({key.prompt for key in pending})):
            report("warning", code="long_prompt", message=f"Only the first 75 tokens count of the prompt: {prompt}")
        texts = _Texts(pipeline, job)
        for number, group in groupby(pending, key=lambda key: key.lora):
            if number == 0:
                _draw(work, pipeline, texts, list(group), parameters)
            elif not work.should_stop():
                _draw_lora(work, pipeline, texts, list(group), parameters)
    finally:
        del pipeline
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _draw_lora(
    work: _Work, pipeline: SamplingPipeline, texts: _Texts, keys: Sequence[CellKey], parameters: dict[CellKey, str]
) -> None:
    """Draw the cells of one LoRA. `texts` are the base's, which hold for a LoRA that has no text encoder."""
    lora = work.plan.lora(keys[0])
    assert lora is not None
    work.report("phase", message=f"Loading {lora.name}")
    with apply_lora(pipeline.pipe, lora) as adapter:
        if adapter.matched < adapter.total:
            work.report(
                "warning",
                code="lora_partial",
                message=f"{keys[0].base} has only {adapter.matched} of the {adapter.total} layers of {lora.name}; "
                f"what it says of the rest, like {adapter.missing[0]}, is left out.",
            )
        for strength, group in groupby(keys, key=lambda key: key.strength):
            adapter.set_strength(strength)
            current = _Texts(pipeline, work.job) if lora.has_text_encoder else texts
            _draw(work, pipeline, current, list(group), parameters)


def _draw(
    work: _Work, pipeline: SamplingPipeline, texts: _Texts, keys: Sequence[CellKey], parameters: dict[CellKey, str]
) -> None:
    """Draw cells one by one, as the pipeline stands."""
    width, height = _size(work.job, pipeline)
    for key in keys:
        if work.should_stop():
            return
        started = time.monotonic()
        picture = pipeline.draw(
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
    work.report("cell", done=len(work.finished), total=len(work.plan.cells), seconds_left=work.seconds_left, **values)


def _size(job: SweepJob, pipeline: SamplingPipeline) -> tuple[int, int]:
    """Width and height in px; the base's own where the job names none."""
    native = pipeline.base.native_resolution
    return job.width or native, job.height or native


def _parameters(work: _Work, pipeline: SamplingPipeline, key: CellKey) -> str:
    """All that decides how a cell looks, in A1111's form."""
    job, lora = work.job, work.plan.lora(key)
    settings = _settings(job, pipeline.sampler, _size(job, pipeline))
    settings |= {"Model hash": pipeline.base.hash[:10], "Model": base_label(key.base)}
    settings |= {"Clip skip": job.clip_skip, "Precision": str(pipeline.base.unet.dtype).removeprefix("torch.")}
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


def _measures(work: _Work) -> dict[str, Any]:
    """Figures of each row that has pictures, and what they mean."""
    labels, rows = work.plan.lora_labels, []
    for row in work.plan.rows():
        pictures = {key.prompt: _open(work.cells[key].path) for key in row.cells if key in work.cells}
        bare = [CellKey(row.base, 0, 0.0, key.prompt) for key in row.cells]
        references = {key.prompt: _open(work.cells[key].path) for key in bare if key in work.cells}
        if pictures:
            figures = measure(pictures, references)
            names = {"base": base_label(row.base), "lora": labels[row.lora - 1], "strength": row.strength}
            rows.append({**names, **figures})
    return {"meaning": MEASURE_DESCRIPTIONS, "rows": rows}


def _open(path: Path) -> Image.Image:
    with Image.open(path, formats=["PNG"]) as picture:
        return picture.convert("RGB")


def _write_grid(work: _Work) -> Path:
    """Draw and save grid.png; returns its path."""
    job, plan = work.job, work.plan
    sections = []
    for (base, number), rows in groupby(plan.rows(), key=lambda row: (row.base, row.lora)):
        drawn = [
            GridRow(
                strength_label(row.strength),
                [work.cells[key].path if key in work.cells else None for key in row.cells],
            )
            for row in rows
        ]
        sections.append(GridSection(plan.heading(base, number), drawn))
    variants = {tuple(plan.prompts(lora)) for lora in plan.loras}
    prompts = list(variants.pop()) if len(variants) == 1 else list(dict.fromkeys(job.prompts))
    bases = ", ".join(map(base_label, plan.bases))
    with Image.open(next(iter(work.cells.values())).path) as first:
        settings = _settings(job, SamplingPipeline.sampler, first.size)
    subtitle = f"{bases} · seed {job.seed} · {job.steps} steps · CFG {job.guidance:g} · {settings['Size']} px"
    path = work.folder.path / "grid.png"
    grid = draw_grid(", ".join(plan.lora_labels), subtitle, prompts, sections)
    settings |= {
        "Model": bases,
        "Lora hashes": ", ".join(f"{lora.name}: {lora.model_hash[:12]}" for lora in plan.loras),
        "Prompts": " | ".join(prompts),
        "Strengths": ", ".join(f"{strength:g}" for strength in plan.strengths),
    }
    save_png(grid, path, infotext(prompts[0], job.negative_prompt, settings))
    return path
