"""What is known about a LoRA file: how it was trained, on what, how it was tested, and the pictures of it."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lora_studio.errors import InputError
from lora_studio.events import SampleEvent
from lora_studio.hub import is_repo_name
from lora_studio.ledger.records import RunFigures, read_figures
from lora_studio.lora.header import LoraFile, read_lora_header
from lora_studio.models.catalogue import KnownBase, find_base
from lora_studio.sampling.picture_measures import PictureMeasures
from lora_studio.sampling.recommend import StrengthAdvice, recommend_strength
from lora_studio.settings.job_specs import SweepJob, TrainJob
from lora_studio.workspace.job_folder import JobFolder, job_folders

MAX_TAGS = 30  # most frequent ones, of the training captions


@dataclass(frozen=True)
class Picture:
    """An image that was drawn with the LoRA: its prompt, and its strength (1 for the samples of a run)."""

    path: Path
    prompt: str
    strength: float = 1.0


@dataclass(frozen=True)
class LoraFacts:
    """What is known about a LoRA. `run` and `job` are None for a file that was not trained by the studio.

    `base` is the name that the run gives its base, `known_base` its entry in the catalogue. `tags` are the most
    frequent ones of the training captions with their counts; `grids` are the pictures of whole sweeps, and `advice` is
    the strength that the latest of them recommends, None if none does.
    """

    file: LoraFile
    trigger_word: str
    base: str
    known_base: KnownBase | None
    tags: tuple[tuple[str, int], ...]
    images: int | None
    run: JobFolder | None = None
    job: TrainJob | None = None
    figures: RunFigures | None = None
    pictures: tuple[Picture, ...] = ()
    grids: tuple[Path, ...] = ()
    advice: StrengthAdvice | None = None

    @property
    def base_repo(self) -> str:
        """The base's repository on the Hub; empty for a local file and for the embedded base."""
        if self.known_base is not None:
            return self.known_base.repo if is_repo_name(self.known_base.repo) else ""
        return self.base if is_repo_name(self.base) and not Path(self.base).exists() else ""

    @property
    def base_name(self) -> str:
        """The base's name for people: without the folders of a local file."""
        if self.known_base is not None:
            return self.known_base.name
        return self.base if self.base_repo else Path(self.base).name


def read_facts(lora: Path) -> LoraFacts:
    """Collect what the file, its run and the tests of its project say; raise InputError if it is not an SDXL LoRA."""
    file = read_lora_header(lora)
    run = run_of(lora)
    job = run.job() if run is not None else None
    metadata = file.metadata
    base = job.base if isinstance(job, TrainJob) else metadata.get("ss_sd_model_name", "")
    facts = LoraFacts(
        file=file,
        trigger_word=job.trigger_word if isinstance(job, TrainJob) else file.trigger_word,
        base=base,
        known_base=find_base(base),
        tags=tuple(_tags(metadata).most_common(MAX_TAGS)),
        images=_image_count(metadata),
    )
    if run is None or not isinstance(job, TrainJob):
        return facts
    pictures, grids, advice = _tested(run, lora)
    return LoraFacts(
        **{name: getattr(facts, name) for name in ("file", "trigger_word", "base", "known_base", "tags", "images")},
        run=run,
        job=job,
        figures=read_figures(run),
        pictures=(*pictures, *_samples(run)),
        grids=tuple(grids),
        advice=advice,
    )


def run_of(lora: Path) -> JobFolder | None:
    """Return the training run that a LoRA file or checkpoint belongs to; None if it is in none."""
    for folder in (lora.parent, lora.parent.parent):
        job = JobFolder(folder)
        with suppress(InputError):
            if job.exists and isinstance(job.job(), TrainJob):
                return job
    return None


def chosen_lora(path: Path) -> Path:
    """Return the LoRA of a run folder, or the file itself.

    Of a run with a validation split it is the checkpoint with the lowest validation loss, else the final file, else the
    last checkpoint. Raises InputError if the run has saved none.
    """
    if path.is_file():
        return path
    job = JobFolder(path).job()
    if not isinstance(job, TrainJob):
        raise InputError(f"{path} is not a training run.", "Give a run's folder or a LoRA file.", code="no_run")
    candidates = [path / "checkpoints" / f"{job.name}-best.safetensors", path / f"{job.name}.safetensors"]
    saved = sorted((path / "checkpoints").glob("*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
    found = next((file for file in (*candidates, *saved) if file.is_file()), None)
    if found is None:
        raise InputError(
            f"The run {path.name} has saved no LoRA.", "Resume it, or save it now on the Train tab.", code="no_lora"
        )
    return found


def _samples(run: JobFolder) -> list[Picture]:
    """Return the samples of a run that exist, latest first."""
    events, _ = run.events()
    samples = [event for event in events if isinstance(event, SampleEvent)]
    pictures = [Picture(run.path / event.path, event.prompt) for event in reversed(samples) if event.step]
    return [picture for picture in pictures if picture.path.is_file()]


def _tested(run: JobFolder, lora: Path) -> tuple[list[Picture], list[Path], StrengthAdvice | None]:
    """Return the cells and grids of the project's sweeps that have this LoRA, latest first, and their latest advice."""
    pictures: list[Picture] = []
    grids: list[Path] = []
    advice: StrengthAdvice | None = None
    for sweep in reversed(list(job_folders(run.path.parent.parent / "sweeps"))):
        with suppress(InputError, OSError, ValueError, KeyError, TypeError):
            job = sweep.job()
            if not isinstance(job, SweepJob) or lora.resolve() not in {path.resolve() for path in job.loras}:
                continue
            cells = (sweep.result() or {}).get("cells", [])
            drawn = [
                Picture(_cell_file(sweep, Path(cell["path"])), cell["prompt"], cell["strength"])
                for cell in cells
                if cell["lora"] and Path(cell["lora"]).name == lora.name
            ]
            pictures += [picture for picture in drawn if picture.path.is_file()]
            grids += [grid] if (grid := sweep.path / "grid.png").is_file() else []
            advice = advice or _advice(sweep, lora)
    return pictures, grids, advice


def _advice(sweep: JobFolder, lora: Path) -> StrengthAdvice | None:
    """Return the strength that the measures of a sweep recommend for a LoRA; None if they recommend none."""
    measures = PictureMeasures.model_validate(json.loads((sweep.path / "measures.json").read_bytes())["pictures"])
    labels = (lora.stem, f"{lora.parent.name}/{lora.stem}")
    rows = [row for row in measures.rows if row.lora in labels]
    advice = recommend_strength([row for row in rows if row.base == rows[0].base], measures.features)
    return advice if advice.strength is not None else None


def _cell_file(sweep: JobFolder, recorded: Path) -> Path:
    """Return the file of a cell, also if its project has moved since it was drawn."""
    path = sweep.path / recorded
    return path if path.is_file() else sweep.path / "cells" / recorded.name


def _tags(metadata: dict[str, str]) -> Counter[str]:
    """Return the tags of the training captions with their counts, over all folders, from kohya's metadata."""
    found: Counter[str] = Counter()
    with suppress(ValueError, AttributeError, TypeError):
        for tags in json.loads(metadata.get("ss_tag_frequency", "{}")).values():
            found.update({tag.strip(): int(count) for tag, count in tags.items() if tag.strip()})
    return found


def _image_count(metadata: dict[str, str]) -> int | None:
    """Return the number of training images without repeats, from kohya's metadata; None if it does not say."""
    with suppress(ValueError, AttributeError, TypeError, KeyError):
        folders = json.loads(metadata["ss_dataset_dirs"])
        return sum(int(folder["img_count"]) for folder in folders.values()) or None
    return None
