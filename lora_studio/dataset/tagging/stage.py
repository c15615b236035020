"""The tagging stage: a caption beside every image, and the way back.

What the taggers see is kept in the studio's cache (see tag_cache.py), so that other thresholds, lists or a stopped job
need no model for pictures that it has seen. Before a caption file is changed, what it was is kept in the job folder
(`captions/` and `captions.jsonl`), so that `restore_captions` can undo the job. The job's events tell which images are
done: a stopped job goes on with the rest.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_studio.dataset.captions.text import caption_file, join_tags, read_caption, split_tags, with_trigger
from lora_studio.dataset.images.decode import file_sha256, find_images
from lora_studio.dataset.manifest import Manifest
from lora_studio.dataset.tagging.cache import TagCache
from lora_studio.dataset.tagging.catalogue import find_tagger
from lora_studio.dataset.tagging.interface import Prediction
from lora_studio.dataset.tagging.runner import ImagePrediction, TaggerRunner, image_sha256
from lora_studio.dataset.tagging.selection import TagSelection, describe, merged
from lora_studio.errors import InputError, disk_errors
from lora_studio.files import write_bytes, write_many
from lora_studio.settings.choices import ExistingCaptions
from lora_studio.settings.job_specs import TagJob
from lora_studio.workspace.job_folder import JobFolder, Report
from lora_studio.workspace.project import Home

KEPT_FOLDER = "captions"
KEPT_FILE = "captions.jsonl"


class Failure(BaseModel):
    """An image that has no caption from this job, and why."""

    model_config = ConfigDict(frozen=True)

    path: Path
    message: str


class TagResult(BaseModel):
    """What a tagging job did: captions written, captions left as they were, images that failed."""

    tagged: int = 0
    skipped: int = 0
    failed: list[Failure] = []
    stopped: bool = False


class RestoreReport(BaseModel):
    """What `restore_captions` did. `restored` have their old caption again, `removed` have none again as before.

    `kept` were edited after the job and stay as they are.
    """

    restored: list[Path] = []
    removed: list[Path] = []
    kept: list[Path] = []

    def lines(self) -> list[str]:
        """The report for people."""
        lines = [f"{path} was edited after it was tagged and stays as it is." for path in self.kept]
        return [*lines, f"{len(self.restored)} captions put back, {len(self.removed)} new ones taken away."]


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

    The trigger word stands first in every caption that is written. A caption that is there is left (ignore), gets the
    tags that it lacks (append), or is replaced (overwrite). An image that cannot be read is told and passed over.
    Raises InputError for a dataset without images or a tagger that cannot be found or loaded; DiskFullError.
    """
    images = find_images(job.dataset)
    if not images:
        raise InputError(
            f"There are no images in {str(job.dataset)!r}.", "Import some, or give another folder.", code="no_images"
        )
    done = _done_before(folder) & {str(image) for image in images} if resume else set()
    work = _TagRun(job, folder, report, total=len(images), done=len(done), result=TagResult(tagged=len(done)))
    waiting = [image for image in images if str(image) not in done]
    todo = [image for image in waiting if not work.leaves(image)]
    if todo:
        hash_of = _hashes(job.dataset)
        *others, last = _open(job, home, report)
        for runner in others:
            if not _see(runner, todo, hash_of, report, should_stop):
                work.result.stopped = True
                return work.result
        report("phase", message="Tagging", done=work.done, total=work.total)
        work.begin(len(todo), [*others, last], hash_of)
        for results in last.predict(todo, hash_of):
            work.write(results)
            if should_stop() and work.seen < len(todo):
                work.result.stopped = True
                break
    return work.result


def _open(job: TagJob, home: Home, report: Report) -> list[TaggerRunner]:
    """The taggers of a job, each with what it has seen already."""

    def tell(message: str) -> None:
        report("phase", message=message)

    found = [find_tagger(name, home=home, on_progress=tell) for name in dict.fromkeys([job.tagger, *job.also])]
    return [TaggerRunner(files, TagCache.of(files, home), tell) for files in found]


def _see(
    runner: TaggerRunner,
    images: Sequence[Path],
    hash_of: Callable[[Path], str],
    report: Report,
    should_stop: Callable[[], bool],
) -> bool:
    """Let a tagger see all images, for its words to be joined later; False if the user asked to stop."""
    done = 0
    for results in runner.predict(images, hash_of):
        done += len(results)
        report("phase", message=f"Looking with {runner.files.name}", done=done, total=len(images))
        if should_stop():
            return False
    return True


def _hashes(dataset: Path) -> Callable[[Path], str]:
    """The SHA-256 of an image of the dataset, from what the last scan wrote down if the file is as it was then."""
    known = {path: info.sha256 for path, info in Manifest.of(dataset).infos.items() if info.sha256}
    return lambda path: known.get(path) or image_sha256(path)


@dataclass
class _TagRun:
    """The state of one job while it runs. `done` counts images of this job that need no more work, of `total`."""

    job: TagJob
    folder: JobFolder
    report: Report
    total: int
    done: int
    result: TagResult
    started: float = 0.0
    left: int = 0
    seen: int = 0
    runner: Sequence[TaggerRunner] = ()
    hash_of: Callable[[Path], str] = image_sha256

    def begin(self, left: int, runner: Sequence[TaggerRunner], hash_of: Callable[[Path], str]) -> None:
        """Start the clock for `left` images that the taggers describe together, in their order."""
        self.started, self.left, self.seen = time.monotonic(), left, 0
        self.runner, self.hash_of = runner, hash_of

    def leaves(self, image: Path) -> bool:
        """Whether the image keeps its caption unseen, or cannot have one; told if so."""
        try:
            caption = read_caption(image)
        except InputError as error:
            self._fail(image, str(error))
            return True
        if caption and self.job.existing is ExistingCaptions.IGNORE:
            self._skip(image)
            return True
        return False

    def write(self, results: Sequence[ImagePrediction]) -> None:
        """Caption the images that the last of the taggers saw; what cannot be read is told."""
        captions: dict[Path, str] = {}
        for path, prediction in results:
            if isinstance(prediction, InputError):
                self._fail(path, str(prediction))
            elif (caption := self._caption(path, self._says(path, prediction))) is not None:
                captions[path] = caption
        _keep(self.folder, {caption_file(path): text for path, text in captions.items()})
        write_many({caption_file(path): text.encode() for path, text in captions.items()})
        for path, text in captions.items():
            self.result.tagged += 1
            self._tell("tagged", path, caption=text)

    def _says(self, image: Path, last: Prediction) -> str:
        job = self.job
        selection = TagSelection(job.threshold, job.character_threshold, only=job.only_tags, exclude=job.exclude_tags)
        predictions = [last]
        if len(self.runner) > 1:
            sha256 = self.hash_of(image)
            predictions = [*(runner.cache.predictions.get(sha256, Prediction()) for runner in self.runner[:-1]), last]
        said = [
            describe(prediction, runner.files.labels, selection)
            for runner, prediction in zip(self.runner, predictions, strict=True)
        ]
        return merged(said).caption

    def _caption(self, image: Path, said: str) -> str | None:
        """What is to be written beside an image; None, and told, if nothing is."""
        old = read_caption(image) or ""
        if not said and not old:
            self._fail(image, f"The tagger is sure of nothing; lower the threshold {self.job.threshold:g}.")
            return None
        new, old = (" ".join(text.split()) for text in (self._combined(old, said), old))
        # A caption that is there now and is to be left was written by somebody since the job began.
        if new == old or (old and self.job.existing is ExistingCaptions.IGNORE):
            self._skip(image)
            return None
        return new

    def _combined(self, old: str, said: str) -> str:
        caption = said or old
        if self.job.existing is ExistingCaptions.APPEND and old and said:
            there = {tag.casefold() for tag in split_tags(old)}
            caption = join_tags([old, *(tag for tag in split_tags(said) if tag.casefold() not in there)])
        return with_trigger(caption, self.job.trigger_word) if self.job.trigger_word.strip() else caption

    def _skip(self, image: Path) -> None:
        self.result.skipped += 1
        self._tell("skipped", image)

    def _fail(self, image: Path, message: str) -> None:
        self.result.failed.append(Failure(path=image, message=message))
        self._tell("image_failed", image, message=message)

    def _tell(self, event: str, image: Path, **values: str) -> None:
        self.done += 1
        self.seen += self.started > 0
        seconds_left = None
        if self.seen:
            seconds_left = round((time.monotonic() - self.started) / self.seen * (self.left - self.seen), 1)
        self.report(event, path=str(image), done=self.done, total=self.total, seconds_left=seconds_left, **values)


def restore_captions(folder: JobFolder | Path) -> RestoreReport:
    """Undo a tagging job, given its job folder: old captions come back byte for byte, new ones are taken away.

    A caption that was edited after the job stays. Doing it twice changes nothing. Raises DiskFullError or InputError
    for what the disk refuses.
    """
    folder = folder if isinstance(folder, JobFolder) else JobFolder(folder)
    changes: dict[Path, list[_Change]] = {}
    for change in _changes(folder):
        changes.setdefault(change.file, []).append(change)
    report = RestoreReport()
    for file, history in changes.items():
        before, now = history[0].before, _content_hash(file)
        if now == before:
            continue
        if now not in {change.after for change in history}:
            report.kept.append(file)
        elif before is None:
            with disk_errors(file):
                file.unlink()
            report.removed.append(file)
        else:
            write_bytes(file, _kept_copy(folder, before).read_bytes())
            report.restored.append(file)
    return report


class _Change(BaseModel):
    """A line of captions.jsonl: a caption file, and the SHA-256 of its content before (None: no file) and after."""

    model_config = ConfigDict(frozen=True)

    file: Path
    before: str | None
    after: str


def _keep(folder: JobFolder, captions: Mapping[Path, str]) -> None:
    """Record that caption files are about to hold these texts, with copies of what they hold now."""
    if not captions:
        return
    copies: dict[Path, bytes] = {}
    changes = []
    for file, text in captions.items():
        before = _content_hash(file)
        if before is not None and not (copy := _kept_copy(folder, before)).exists():
            copies[copy] = file.read_bytes()
        changes.append(_Change(file=file, before=before, after=hashlib.sha256(text.encode()).hexdigest()))
    path = folder.path / KEPT_FILE
    with disk_errors(path):
        (folder.path / KEPT_FOLDER).mkdir(exist_ok=True)
        write_many(copies)
        with path.open("a", encoding="utf-8") as lines:
            # The line break comes first: so a line that was torn when the machine died spoils no other.
            lines.write("".join(f"\n{change.model_dump_json()}" for change in changes))


def _kept_copy(folder: JobFolder, content_hash: str) -> Path:
    return folder.path / KEPT_FOLDER / f"{content_hash}.txt"


def _changes(folder: JobFolder) -> Iterator[_Change]:
    """The recorded changes, oldest first; a torn last line, whose change did not happen, is left out."""
    try:
        lines = (folder.path / KEPT_FILE).read_text("utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield _Change.model_validate_json(line)
        except ValidationError:
            continue


def _content_hash(file: Path) -> str | None:
    return file_sha256(file) if file.is_file() else None


def _done_before(folder: JobFolder) -> set[str]:
    """The images that this job has captioned already, by its events."""
    return {str(event.get("path")) for event in folder.events()[0] if event.get("event") == "tagged"}
