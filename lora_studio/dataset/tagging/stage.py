"""The tagging stage: write a caption beside every image.

The taggers' predictions are cached (see cache.py): another threshold, another tag list or a resumed job needs no
forward pass for images tagged before. The captions of a job are one edit in the caption history, recorded before they
are written: undoing it restores the captions. A resumed job skips the images that its events report as tagged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from lora_studio.dataset.captions.edit_history import CaptionHistory, JobEdit
from lora_studio.dataset.captions.text import join_tags, read_caption, split_tags, with_trigger
from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.manifest import Manifest
from lora_studio.dataset.review import record_reviewed_captions
from lora_studio.dataset.tagging.cache import TagCache
from lora_studio.dataset.tagging.catalogue import find_tagger
from lora_studio.dataset.tagging.compare import ComparedTagger, compare_taggers
from lora_studio.dataset.tagging.interface import Prediction
from lora_studio.dataset.tagging.runner import ImagePrediction, TaggerRunner, image_sha256
from lora_studio.dataset.tagging.selection import TagSelection, describe, merged
from lora_studio.errors import InputError
from lora_studio.events import ImageFailedEvent, PhaseEvent, Report, SkippedEvent, TaggedEvent
from lora_studio.settings.choices import ExistingCaptions
from lora_studio.settings.job_specs import TagJob
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home


class Failure(BaseModel):
    """An image that this job could not caption, and why."""

    model_config = ConfigDict(frozen=True)

    path: Path
    message: str


class TagResult(BaseModel):
    """Result of a tagging job: the number of captions written and of captions kept, and the images that failed.

    `compared` is that of a job which compares taggers on one image and writes nothing.
    """

    tagged: int = 0
    skipped: int = 0
    failed: list[Failure] = []
    stopped: bool = False
    compared: list[ComparedTagger] = []


def tag(
    job: TagJob,
    folder: JobFolder,
    *,
    home: Home,
    report: Report,
    should_stop: Callable[[], bool],
    resume: bool = False,
) -> TagResult:
    """Write captions beside the images of `job.dataset`.

    The trigger word is the first tag of every caption written. An existing caption is kept (ignore), gets the tags that
    it lacks (append), or is replaced (overwrite). An image that cannot be read is reported and skipped. Raises
    InputError for a dataset without images or a tagger that cannot be found or loaded; DiskFullError.
    """
    if job.compare is not None:
        return _compare(job, job.compare, home, report, should_stop)
    images = find_images(job.dataset)
    if not images:
        raise InputError(
            f"There are no images in {str(job.dataset)!r}.", "Import some, or give another folder.", code="no_images"
        )
    done = _tagged_before(folder) & {str(image) for image in images} if resume else set()
    edit = CaptionHistory.of(job.dataset).edit_of_job(
        f"Tagged with {' and '.join([job.tagger, *job.also])}", folder.path, resume=resume
    )
    run = _TagRun(job, edit, report, total=len(images), done=len(done), result=TagResult(tagged=len(done)))
    todo = [image for image in images if str(image) not in done and not run.skips(image)]
    if not todo:
        return run.result
    sha256_of = _sha256_lookup(job.dataset)
    record_reviewed_captions(job.dataset)
    *others, last = _open_taggers(job, home, report)
    for runner in others:
        if not _fill_cache(runner, todo, sha256_of, report, should_stop):
            run.result.stopped = True
            return run.result
    report(PhaseEvent(message="Tagging", done=run.done, total=run.total))
    run.start_clock(len(todo), [*others, last], sha256_of)
    for results in last.predict(todo, sha256_of):
        run.write_captions(results)
        if should_stop() and run.processed < len(todo):
            run.result.stopped = True
            break
    return run.result


def combined_caption(old: str, predicted: str, existing: ExistingCaptions, trigger_word: str) -> str:
    """Return the caption to write, given an old caption and the tags or sentence that the taggers predicted."""
    caption = predicted or old
    if existing is ExistingCaptions.APPEND and old and predicted:
        present = {tag.casefold() for tag in split_tags(old)}
        caption = join_tags([old, *(tag for tag in split_tags(predicted) if tag.casefold() not in present)])
    return with_trigger(caption, trigger_word) if trigger_word.strip() else caption


def _open_taggers(job: TagJob, home: Home, report: Report) -> list[TaggerRunner]:
    """Find the taggers of a job and open their caches."""
    return [_open_tagger(job, home, report, name) for name in dict.fromkeys([job.tagger, *job.also])]


def _open_tagger(job: TagJob, home: Home, report: Report, name: str) -> TaggerRunner:
    def report_phase(message: str) -> None:
        report(PhaseEvent(message=message))

    prompt = job.prompt.replace("{trigger}", job.trigger_word)
    files = find_tagger(name, home=home, on_progress=report_phase).with_prompt(prompt, job.max_caption_tokens)
    return TaggerRunner(files, TagCache.of(files, home), report_phase)


def _compare(job: TagJob, image: Path, home: Home, report: Report, should_stop: Callable[[], bool]) -> TagResult:
    """Run the taggers of a job on one image, without writing a caption."""
    names = list(dict.fromkeys([job.tagger, *job.also]))
    found = compare_taggers(image, names, partial(_open_tagger, job, home, report), _selection(job), should_stop)
    return TagResult(compared=found, stopped=len(found) < len(names))


def _selection(job: TagJob) -> TagSelection:
    return TagSelection(job.threshold, job.character_threshold, only=job.only_tags, exclude=job.exclude_tags)


def _fill_cache(
    runner: TaggerRunner,
    images: Sequence[Path],
    sha256_of: Callable[[Path], str],
    report: Report,
    should_stop: Callable[[], bool],
) -> bool:
    """Run a tagger over all images, for its tags to be merged later; return False if the user asked to stop."""
    done = 0
    for results in runner.predict(images, sha256_of):
        done += len(results)
        report(PhaseEvent(message=f"Running {runner.files.name}", done=done, total=len(images)))
        if should_stop():
            return False
    return True


def _sha256_lookup(dataset: Path) -> Callable[[Path], str]:
    """Return a function from an image to its SHA-256, which the last scan stored unless the file has changed."""
    known = {path: info.sha256 for path, info in Manifest.of(dataset).infos.items() if info.sha256}
    return lambda path: known.get(path) or image_sha256(path)


@dataclass
class _TagRun:
    """The state of a running job. Of its `total` images, `done` need no more work."""

    job: TagJob
    edit: JobEdit
    report: Report
    total: int
    done: int
    result: TagResult
    started: float = 0.0
    todo: int = 0
    processed: int = 0
    runners: Sequence[TaggerRunner] = ()
    sha256_of: Callable[[Path], str] = image_sha256

    def start_clock(self, todo: int, runners: Sequence[TaggerRunner], sha256_of: Callable[[Path], str]) -> None:
        """Start the estimate of the remaining time, for `todo` images that the runners tag."""
        self.started, self.todo, self.processed = time.monotonic(), todo, 0
        self.runners, self.sha256_of = runners, sha256_of

    def skips(self, image: Path) -> bool:
        """Return whether the image keeps its caption without being tagged, or cannot have one; report it if so."""
        try:
            caption = read_caption(image)
        except InputError as error:
            self._report_failed(image, str(error))
            return True
        if caption and self.job.existing is ExistingCaptions.IGNORE:
            self._report_skipped(image)
            return True
        return False

    def write_captions(self, results: Sequence[ImagePrediction]) -> None:
        """Caption the images that the last of the taggers predicted; report those that cannot be read."""
        captions: dict[Path, str] = {}
        for path, prediction in results:
            if isinstance(prediction, InputError):
                self._report_failed(path, str(prediction))
            elif (caption := self._new_caption(path, self._predicted_caption(path, prediction))) is not None:
                captions[path] = caption
        self.edit.write(captions)
        for path, text in captions.items():
            self.result.tagged += 1
            self.report(TaggedEvent(**self._count(path), caption=text))

    def _predicted_caption(self, image: Path, last: Prediction) -> str:
        selection = _selection(self.job)
        predictions = [last]
        if len(self.runners) > 1:
            sha256 = self.sha256_of(image)
            others = (runner.cache.predictions.get(sha256, Prediction()) for runner in self.runners[:-1])
            predictions = [*others, last]
        return merged(
            [
                describe(prediction, runner.files.labels, selection)
                for runner, prediction in zip(self.runners, predictions, strict=True)
            ]
        ).caption

    def _new_caption(self, image: Path, predicted: str) -> str | None:
        """Return the caption to write beside an image; return None and report why if there is none."""
        old = read_caption(image) or ""
        if not predicted and not old:
            self._report_failed(image, f"No tag reaches the threshold {self.job.threshold:g}; lower it.")
            return None
        new = combined_caption(old, predicted, self.job.existing, self.job.trigger_word)
        new, old = (" ".join(text.split()) for text in (new, old))
        # With IGNORE, an existing caption was written by someone else since the job began.
        if new == old or (old and self.job.existing is ExistingCaptions.IGNORE):
            self._report_skipped(image)
            return None
        return new

    def _report_skipped(self, image: Path) -> None:
        self.result.skipped += 1
        self.report(SkippedEvent(**self._count(image)))

    def _report_failed(self, image: Path, message: str) -> None:
        self.result.failed.append(Failure(path=image, message=message))
        self.report(ImageFailedEvent(**self._count(image), message=message))

    def _count(self, image: Path) -> dict[str, Any]:
        """Count a finished image; return the fields of its event."""
        self.done += 1
        self.processed += self.started > 0
        seconds_left = None
        if self.processed:
            seconds_per_image = (time.monotonic() - self.started) / self.processed
            seconds_left = round(seconds_per_image * (self.todo - self.processed), 1)
        return {"path": str(image), "done": self.done, "total": self.total, "seconds_left": seconds_left}


def _tagged_before(folder: JobFolder) -> set[str]:
    """Return the paths of the images that this job has captioned already, from its events."""
    return {event.path for event in folder.events()[0] if isinstance(event, TaggedEvent)}
