"""The other stages: tag, sweep, release, the ledger of runs, and base models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lora_studio.api.jobs import build, execute_job, ignore, resume, run_job
from lora_studio.event_recorder import Listener
from lora_studio.ledger.compare import Comparison, compare
from lora_studio.ledger.records import find_records, read_records
from lora_studio.ledger.table import to_frame
from lora_studio.models.found import Model, catalogue_models, find_models
from lora_studio.settings.choices import ExistingCaptions, Precision, Sampler, SweepAxis
from lora_studio.settings.job_specs import DownloadJob, StackedLora, SweepJob, TagJob
from lora_studio.sharing.folder import ReleaseResult, build_release
from lora_studio.sharing.options import License, ReleaseOptions
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home

if TYPE_CHECKING:
    import pandas as pd

    from lora_studio.dataset.tagging.stage import TagResult
    from lora_studio.models.download import DownloadResult
    from lora_studio.sampling.sweep import SweepResult

TAG, SWEEP = TagJob.defaults(), SweepJob.defaults()


def tag(
    dataset: Path | str,
    *,
    tagger: str | Sequence[str],
    threshold: float = TAG.threshold,
    character_threshold: float = TAG.character_threshold,
    trigger_word: str = TAG.trigger_word,
    existing: ExistingCaptions | str = TAG.existing,
    exclude_tags: Sequence[str] = TAG.exclude_tags,
    only_tags: Sequence[str] = TAG.only_tags,
    prompt: str = TAG.prompt,
    max_caption_tokens: int = TAG.max_caption_tokens,
    compare: Path | str | None = TAG.compare,
    out: Path | None = None,
    home: Home | None = None,
    on_event: Listener = ignore,
) -> TagResult:
    """Write captions for the images of `dataset`.

    `tagger` is wd14, blip, demo, a Hub repository or a folder, or a list of them, whose tags are combined. `threshold`
    (0 to 1) is the minimum confidence of a tag, `character_threshold` that of a character's name. `existing` decides
    what happens to existing captions; `exclude_tags` are whole tags to leave out, `only_tags` the only ones to write.
    `prompt` is what image-text models are asked, `max_caption_tokens` the limit of their answer.
    With the path of an image in `compare`, the taggers are compared on it and no caption is written.
    `out` is the job folder (default: a numbered one in the studio's home). Raises StudioError.
    """
    job = build(
        TagJob,
        dataset=dataset,
        tagger=tagger,
        threshold=threshold,
        character_threshold=character_threshold,
        trigger_word=trigger_word,
        existing=existing,
        exclude_tags=exclude_tags,
        only_tags=only_tags,
        prompt=prompt,
        max_caption_tokens=max_caption_tokens,
        compare=compare,
    )
    return cast("TagResult", run_job(job, out=out, home=home, on_event=on_event))


def sweep(
    loras: Sequence[Path | str] = (),
    *,
    bases: Sequence[str],
    prompts: Sequence[str],
    trigger_word: str = SWEEP.trigger_word,
    strengths: Sequence[float] | str = SWEEP.strengths,
    text_encoder_strength: float | None = SWEEP.text_encoder_strength,
    with_loras: Sequence[StackedLora | str] = SWEEP.with_loras,
    negative_prompt: str = SWEEP.negative_prompt,
    quality_tags: bool = SWEEP.quality_tags,
    seeds: Sequence[int] | str = SWEEP.seeds,
    seed: int | None = None,
    sampler: Sampler | str = SWEEP.sampler,
    steps: int = SWEEP.steps,
    guidance: float = SWEEP.guidance,
    width: int | None = SWEEP.width,
    height: int | None = SWEEP.height,
    clip_skip: int = SWEEP.clip_skip,
    mixed_precision: Precision | str = SWEEP.mixed_precision,
    feature_model: str = SWEEP.feature_model,
    rows: SweepAxis | str | None = SWEEP.rows,
    columns: SweepAxis | str | None = SWEEP.columns,
    out: Path | None = None,
    home: Home | None = None,
    on_event: Listener = ignore,
) -> SweepResult:
    """Generate an image per LoRA, strength, prompt, seed and base, and combine them in one grid.

    Without LoRAs, the bases alone are drawn.

    `{trigger}` in a prompt is replaced by `trigger_word`, by default that of each LoRA. `strengths` and `seeds` can
    also be texts such as "0,0.8,1" or "0:1.4:0.2"; `text_encoder_strength` replaces a strength in the text encoders.
    `with_loras` are LoRAs that all images have besides, as texts like "b.safetensors:0.6". `seed` is one seed instead
    of `seeds`. `rows` and `columns` are two of the axes prompt, strength, seed, lora and base; the others are sections
    of the grid. A cell that another sweep in the same parent folder has is copied, not drawn. `width` and `height` are
    in pixels (default: the base's native resolution), `guidance` is the CFG scale. With `quality_tags` each base's own
    are added to the prompts; a negative prompt of "auto" is what its model card recommends. `feature_model` compares
    the images (docs/measures.md). `out` is the sweep's folder (default: a numbered one in the studio's home). Raises
    StudioError.
    """
    job = build(
        SweepJob,
        loras=loras,
        bases=bases,
        prompts=prompts,
        trigger_word=trigger_word,
        strengths=strengths,
        text_encoder_strength=text_encoder_strength,
        with_loras=list(with_loras),
        negative_prompt=negative_prompt,
        quality_tags=quality_tags,
        sampler=sampler,
        seeds=seeds if seed is None else [seed],
        steps=steps,
        guidance=guidance,
        width=width,
        height=height,
        clip_skip=clip_skip,
        mixed_precision=mixed_precision,
        feature_model=feature_model,
        rows=rows,
        columns=columns,
    )
    return cast("SweepResult", run_job(job, out=out, home=home, on_event=on_event))


def list_models(*, home: Home | None = None) -> list[Model]:
    """Return the base models: those of the catalogue, then those found on this machine, also ones that cannot be used.

    The folders of AUTOMATIC1111, Forge, ComfyUI and kohya_ss in the user's home, those in LORA_STUDIO_MODEL_DIRS and in
    the home's model-folders.txt, and the Hub's cache are looked through.
    """
    home = home or Home.locate()
    return [*catalogue_models(home), *find_models(home)]


def download_model(base: str, *, home: Home | None = None, on_event: Listener = ignore) -> DownloadResult:
    """Download a base model by its name in the catalogue or its Hub repository, unless it is on this machine.

    What a stopped or broken download received is kept, and continued. Raises StudioError.
    """
    home = home or Home.locate()
    folder = home.download_of(base)
    job = build(DownloadJob, base=base)
    if not folder.exists:
        return cast("DownloadResult", execute_job(JobFolder.create(folder.path, job), home, on_event))
    return cast("DownloadResult", resume(folder.path, home=home, on_event=on_event))


def release(
    run: Path | str,
    *,
    name: str = "",
    strength: float | None = None,
    description: str = "",
    license: License | str | None = None,
    license_name: str = "",
    license_link: str = "",
    preview: Path | str | None = None,
    strip_tags: bool = False,
    adult: bool = False,
    out: Path | str | None = None,
) -> ReleaseResult:
    """Write a folder to share, and a zip of it: LoRA, previews, grid, model card, A1111 sidecar, text for Civitai.

    `run` is a run's folder, of which the best checkpoint is taken, or a LoRA file. `strength` is the one to recommend
    (default: 1), `license` the Hub's identifier (default: the base's), `preview` a picture. `strip_tags` leaves tags,
    folder names and dates out of the file. `out` is where the new folder is made (default: `release` in the run).
    Raises StudioError.
    """
    given = {
        "name": name,
        "strength": strength,
        "description": description,
        "license": license,
        "license_name": license_name,
        "license_link": license_link,
        "preview": preview,
        "strip_tags": strip_tags,
        "adult": adult,
    }
    return build_release(Path(run), ReleaseOptions.parse(given), out=None if out is None else Path(out))


def runs(folder: Path | str | None = None, *, everything: bool = False, home: Home | None = None) -> pd.DataFrame:
    """Return the training runs of a project, or of a folder of runs, as a table with one row per run.

    Columns: project, run, parent and the differences to it, hashes of base, images and captions, steps, fixed-noise
    loss, verdict, stars, notes, time and others. `validation_change`, the loss relative to the base's, compares runs.
    Without a folder: of the project that the working directory is in, else of all projects of the home, as with
    `everything`. Raises InputError if the folder has none.
    """
    return to_frame(find_records(Path(folder) if folder is not None else None, everything=everything, home=home))


def compare_runs(*folders: Path | str) -> Comparison:
    """Compare two or more runs: the settings that differ, and their fixed-noise losses; raises InputError."""
    jobs = [JobFolder(Path(folder)) for folder in folders]
    for job in jobs:
        job.job()
    return compare([record for job in jobs for record in read_records([job], "")])
