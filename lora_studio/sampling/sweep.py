"""The strength sweep: every LoRA at every strength for every prompt and seed on every base, as one labelled grid.

Strength 0 is the base alone, so it is generated once for all LoRAs. Each cell is saved with its parameters as soon as
it is done; a cell that exists in any sweep of the project is reused.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import BaseModel

from lora_studio.device import free_gpu_cache, warn_if_out_of_memory
from lora_studio.errors import StopRequested, StudioError
from lora_studio.events import CellEvent, PhaseEvent, Report, WarningEvent
from lora_studio.files import write_json
from lora_studio.lora.alphas import content_hash
from lora_studio.lora.header import LoraFile, read_lora_header
from lora_studio.measures.models import named_feature_model
from lora_studio.models.pipeline import TextEmbeddings
from lora_studio.models.png_info import infotext, load_png, save_png
from lora_studio.sampling.adapter import Adapter, Strength, apply_loras
from lora_studio.sampling.cell_texts import BaseFacts, cell_settings, cell_size, cell_texts, read_base_facts
from lora_studio.sampling.cells import CellKey, SweepPlan, base_label
from lora_studio.sampling.grid import GridRow, GridSection, draw_grid
from lora_studio.sampling.measures import MEASURE_DESCRIPTIONS, StrengthMeasures, measure
from lora_studio.sampling.picture_measures import measure_pictures
from lora_studio.sampling.pipeline import SamplingPipeline, load_sampling_pipeline
from lora_studio.sampling.recommend import recommendations
from lora_studio.sampling.reuse import CellCache, CellTexts
from lora_studio.settings.choices import SweepAxis
from lora_studio.settings.job_specs import SweepJob
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home

BATCH_PIXELS, MAX_BATCH = 4 * 128**2, 4


class Cell(BaseModel):
    """One image of a sweep. At strength 0 `lora` is None: the image is the base's, for all LoRAs."""

    path: Path
    prompt: str
    strength: float
    seed: int
    lora: Path | None
    base: str


class SweepResult(BaseModel):
    """The result of a sweep; `measures` has a row of figures per base, LoRA and strength, and their meaning."""

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
    """Generate the cells of `job` in `folder`, then grid.png and measures.json from all finished cells.

    Cells that exist in this or another sweep of the project are reused, whether `resume` is set or not. A stop request
    cancels the current cell. Raises InputError for a LoRA, base or feature model that cannot be used.
    """
    loras = [read_lora_header(path) for path in job.loras]
    if job.feature_model:
        named_feature_model(job.feature_model, home)
    stacked = [read_lora_header(given.path) for given in job.with_loras]
    state = _SweepState(job, folder, report, should_stop, SweepPlan(job, loras, stacked), CellCache(folder))
    for number, base in enumerate(state.plan.bases):
        if should_stop():
            break
        if number:
            gc.collect()  # the base before
        _sweep_base(state, base, home)
    cells = [state.cells[key] for key in state.plan.cells if key in state.cells]
    report(PhaseEvent(message="Drawing the grid"))
    measures: dict[str, Any] = {"meaning": MEASURE_DESCRIPTIONS, "rows": []}
    with warn_if_out_of_memory(report, "measures_out_of_memory", "Memory ran out while measuring the images."):
        measures["rows"] = _measures(state)
    if cells and not should_stop():
        measures["pictures"] = _picture_measures(state, home)
    write_json(folder.path / "measures.json", measures)
    return SweepResult(
        grid=_write_grid(state) if cells else None,
        cells=cells,
        measures=measures,
        stopped=len(state.finished) < len(state.plan.cells),
    )


@dataclass
class _SweepState:
    """The state of a sweep. `finished` has the keys in `cells` and those of images that were not finite."""

    job: SweepJob
    folder: JobFolder
    report: Report
    should_stop: Callable[[], bool]
    plan: SweepPlan
    cache: CellCache
    cells: dict[CellKey, Cell] = field(default_factory=dict)
    finished: set[CellKey] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)

    @cached_property
    def lora_hashes(self) -> dict[Path, str]:
        """The content hash of each LoRA file."""
        return {lora.path: content_hash(lora) for lora in (*self.plan.loras, *self.plan.stacked)}

    @property
    def seconds_left(self) -> float | None:
        """The estimated time left, from the mean time per cell so far."""
        if not self.seconds:
            return None
        return round((len(self.plan.cells) - len(self.finished)) * sum(self.seconds) / len(self.seconds), 1)

    def path(self, key: CellKey) -> Path:
        """Return the file of a cell."""
        return self.folder.path / self.plan.path(key)

    def add(self, key: CellKey) -> Cell:
        """Add a cell whose file is on disk to the result."""
        lora = self.plan.lora(key)
        self.finished.add(key)
        self.cells[key] = Cell(
            path=self.path(key),
            prompt=key.prompt,
            strength=key.strength,
            seed=key.seed,
            lora=lora.path if lora else None,
            base=key.base,
        )
        return self.cells[key]


@dataclass
class _PromptCache:
    """Cached embeddings of prompts, valid while the text encoders do not change."""

    pipeline: SamplingPipeline
    clip_skip: int
    negative_prompt: str
    cached: dict[str, TextEmbeddings] = field(default_factory=dict)

    def prompt(self, text: str) -> TextEmbeddings:
        """Return the embeddings of a prompt."""
        if text not in self.cached:
            self.cached[text] = self.pipeline.encode(text, clip_skip=self.clip_skip)
        return self.cached[text]

    @cached_property
    def negative(self) -> TextEmbeddings:
        """The embeddings of the negative prompt."""
        return self.pipeline.encode_negative(self.negative_prompt, clip_skip=self.clip_skip)


def _sweep_base(state: _SweepState, base: str, home: Home) -> None:
    """Generate the missing cells of one base, and free its memory at the end; without any it is not loaded."""
    job, report = state.job, state.report
    keys = [key for key in state.plan.cells if key.base == base]
    known = read_base_facts(base, home, job.mixed_precision)
    texts = {} if known is None else _restore(state, keys, known)
    if state.finished.issuperset(keys):
        return
    pipeline = load_sampling_pipeline(
        base,
        home=home,
        precision=job.mixed_precision,
        sampler=job.sampler,
        on_progress=lambda message: report(PhaseEvent(message=message)),
    )
    try:
        facts = BaseFacts.of(pipeline, known)
        if facts != known:
            texts = _restore(state, keys, facts)
        pending = [key for key in keys if key not in state.finished]
        prompts = _PromptCache(pipeline, job.clip_skip, state.plan.negative_prompt(base))
        for _, group in groupby(pending, key=lambda key: key.lora):
            if state.should_stop():
                break
            _generate_lora(state, pipeline, prompts, list(group), texts)
    finally:
        is_on_gpu = pipeline.device.type != "cpu"
        del pipeline
        if is_on_gpu:
            gc.collect()
            free_gpu_cache()


def _restore(state: _SweepState, keys: Sequence[CellKey], base: BaseFacts) -> dict[CellKey, CellTexts]:
    """Add the cells that exist, of this base and no other, to the result; return the texts of all."""
    state.finished.difference_update(keys)
    texts = {key: cell_texts(state.plan, key, base, state.lora_hashes) for key in keys}
    for key in keys:
        state.cells.pop(key, None)
        if state.cache.restore(state.path(key), texts[key]):
            state.add(key)
    return texts


def _generate_lora(
    state: _SweepState,
    pipeline: SamplingPipeline,
    texts: _PromptCache,
    keys: Sequence[CellKey],
    parameters: dict[CellKey, CellTexts],
) -> None:
    """Generate the cells of one LoRA, or of the base without one, each with the job's stacked LoRAs.

    `texts` are the base's embeddings, reused if no LoRA changes the text encoders.
    """
    loras = [applied.file for applied in state.plan.applied(keys[0])]
    if loras:
        state.report(PhaseEvent(message=f"Loading {', '.join(lora.name for lora in loras)}"))
    with apply_loras(pipeline.pipe, loras) as stack:
        for lora, adapter in zip(loras, stack.adapters, strict=True):
            _warn_of_parts(state, keys[0].base, lora, adapter)
        for _, group in groupby(keys, key=lambda key: key.strength):
            cells = list(group)
            strengths = [Strength(applied.unet, applied.text_encoder) for applied in state.plan.applied(cells[0])]
            stack.set_strengths(strengths)
            changes_texts = any(lora.has_text_encoder for lora in loras)
            _generate(state, pipeline, replace(texts, cached={}) if changes_texts else texts, cells, parameters)


def _warn_of_parts(state: _SweepState, base: str, lora: LoraFile, adapter: Adapter) -> None:
    """Warn about what a file has and a base or the studio does not use."""
    if lora.embeddings:
        words = ", ".join(map(repr, lora.embeddings))
        message = f"{lora.name} has embeddings for {words}, which are ignored: these words keep the base's meaning."
        state.report(WarningEvent(code="lora_embeddings", message=message))
    if adapter.missing:
        message = (
            f"{base} has only {adapter.matched} of the {adapter.total} layers of {lora.name}; "
            f"the others, like {adapter.missing[0]}, are ignored."
        )
        state.report(WarningEvent(code="lora_partial", message=message))


def _generate(
    state: _SweepState,
    pipeline: SamplingPipeline,
    texts: _PromptCache,
    keys: Sequence[CellKey],
    parameters: dict[CellKey, CellTexts],
) -> None:
    """Generate cells with the pipeline in its current state, small ones in batches that become smaller without memory.

    A batch costs less time than its images one by one where starting the operations takes longer than computing them:
    of 4 images of 128 px on a CPU, half as much. Its pixels are within 1 of 255 of those one by one.
    """
    width, height = cell_size(state.job, pipeline.base.native_resolution)
    for prompt in [key.prompt for key in keys]:
        texts.prompt(prompt)  # all at once, since the text encoders leave the GPU afterwards
    size = min(max(1, BATCH_PIXELS // (width * height)), MAX_BATCH)
    pending = list(keys)
    while pending and not state.should_stop():
        batch = pending[:size]
        started = time.monotonic()
        try:
            images = pipeline.generate_batch(
                [texts.prompt(key.prompt) for key in batch],
                texts.negative,
                seeds=[key.seed for key in batch],
                steps=state.job.steps,
                guidance=state.job.guidance,
                width=width,
                height=height,
                should_stop=state.should_stop,
            )
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size //= 2
            free_gpu_cache()
            continue
        del pending[: len(batch)]
        seconds = (time.monotonic() - started) / len(batch)
        for key, image in zip(batch, images, strict=True):
            _finish(state, key, image, parameters[key], seconds)


def _finish(state: _SweepState, key: CellKey, image: Image.Image | None, texts: CellTexts, seconds: float) -> None:
    """Save and report an image that was generated; warn of one that is not finite."""
    if image is not None:
        state.cache.save(image, state.path(key), texts)
        state.seconds.append(seconds)
        _report_cell(state, state.add(key))
    elif not state.should_stop():
        state.finished.add(key)
        message = f"No image at strength {key.strength:g} for {key.prompt!r}: the values became NaN or Inf."
        state.report(WarningEvent(code="not_finite", message=message))


def _report_cell(state: _SweepState, cell: Cell) -> None:
    values = cell.model_dump(mode="json") | {"path": cell.path.relative_to(state.folder.path).as_posix()}
    done, total = len(state.finished), len(state.plan.cells)
    state.report(CellEvent(done=done, total=total, seconds_left=state.seconds_left, **values))


def _measures(state: _SweepState) -> list[dict[str, Any]]:
    """Return the measures of each base, LoRA and strength with images."""
    labels, rows = state.plan.lora_labels, []
    for group in state.plan.strength_groups():
        images = _images(state, group.cells)
        bare = [replace(key, lora=0, strength=0.0) for key in group.cells]
        references = {key: image for key, image in zip(group.cells, _loaded(state, bare), strict=True) if image}
        if images:
            figures = measure(images, references)
            base, lora = base_label(group.base), labels[group.lora - 1] if group.lora else ""
            rows.append(StrengthMeasures(base=base, lora=lora, strength=group.strength, **figures).model_dump())
    return rows


def _picture_measures(state: _SweepState, home: Home) -> dict[str, Any] | None:
    """Return the measures by features; None, with a warning, without memory or the model, and after a stop request."""
    paths = {key: cell.path for key, cell in state.cells.items()}
    message = "Memory ran out while comparing the images."
    try:
        with warn_if_out_of_memory(state.report, "picture_measures_out_of_memory", message):
            found = measure_pictures(
                state.plan, paths, state.folder.path, home, report=state.report, should_stop=state.should_stop
            )
            return found.model_dump(mode="json") | {"recommended": recommendations(found, state.plan)}
    except StopRequested:
        return None
    except StudioError as error:
        state.report(WarningEvent(code=error.code, message=error.message, why=error.remedy))
    return None


def _images(state: _SweepState, keys: Sequence[CellKey]) -> dict[CellKey, Image.Image]:
    """Return the images of the cells that exist."""
    return {key: image for key, image in zip(keys, _loaded(state, keys), strict=True) if image}


def _loaded(state: _SweepState, keys: Sequence[CellKey]) -> list[Image.Image | None]:
    """Return the image of each cell; None for one that does not exist."""
    return [load_png(state.cells[key].path) if key in state.cells else None for key in keys]


def _write_grid(state: _SweepState) -> Path:
    """Draw grid.png and return its path."""
    job, plan = state.job, state.plan
    arranged = plan.arrangement
    sections = []
    for page in plan.pages():
        paths = [[state.cells[key].path if key in state.cells else None for key in row] for row in plan.table(page)]
        labels = plan.labels(arranged.rows)
        rows = [GridRow(label, images) for label, images in zip(labels, paths, strict=True)]
        sections.append(GridSection(plan.page_label(page), rows))
    bases, seeds = ", ".join(plan.labels(SweepAxis.BASE)), ", ".join(map(str, plan.seeds))
    with Image.open(next(iter(state.cells.values())).path) as first:
        settings = cell_settings(job, plan.seeds[0], first.size)
    subtitle = f"{bases} · seed {seeds} · {job.steps} steps · CFG {job.guidance:g} · {settings['Size']} px"
    path = state.folder.path / "grid.png"
    grid = draw_grid(", ".join(plan.lora_labels) or bases, subtitle, plan.labels(arranged.columns), sections)
    hashes = ", ".join(f"{lora.name}: {lora.model_hash[:12]}" for lora in plan.loras)
    prompts = plan.labels(SweepAxis.PROMPT)
    settings |= {
        "Model": bases,
        **({"Lora hashes": hashes} if hashes else {}),
        "Prompts": " | ".join(prompts),
        "Strengths": ", ".join(f"{strength:g}" for strength in plan.strengths),
        **({"Seeds": seeds} if len(plan.seeds) > 1 else {}),
    }
    save_png(grid, path, infotext(prompts[0], plan.negative_prompt(plan.bases[0]), settings))
    return path
