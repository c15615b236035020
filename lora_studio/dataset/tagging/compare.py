"""Compare taggers on one image, before all are tagged: the tags and the sentence of each, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lora_studio.dataset.tagging.interface import Tag
from lora_studio.dataset.tagging.runner import TaggerRunner, image_sha256
from lora_studio.dataset.tagging.selection import TagSelection, describe
from lora_studio.errors import InputError


class ComparedTagger(BaseModel):
    """What a tagger says about an image, in `seconds` with loading it, or why it says nothing."""

    model_config = ConfigDict(frozen=True)

    tagger: str
    tags: list[Tag] = []
    sentence: str = ""
    seconds: float | None = None
    error: str = ""

    @property
    def text(self) -> str:
        """The tags with their confidence, or the sentence, or the error, as one line."""
        tags = ", ".join(f"{tag.name} {tag.confidence:.2f}" for tag in self.tags)
        return self.error or " / ".join(part for part in (self.sentence, tags) if part) or "nothing"


def compare_taggers(
    image: Path,
    names: Iterable[str],
    open_tagger: Callable[[str], TaggerRunner],
    selection: TagSelection,
    should_stop: Callable[[], bool],
) -> list[ComparedTagger]:
    """Run each tagger on an image and return their tags by a selection; one that cannot be used has its error.

    The predictions are cached, as those of a tagging job are.
    """
    found = []
    for name in names:
        if should_stop():
            break
        try:
            found.append(_described(image, name, open_tagger(name), selection))
        except InputError as error:
            found.append(ComparedTagger(tagger=name, error=f"{error.message} {error.remedy}".strip()))
    return found


def _described(image: Path, name: str, runner: TaggerRunner, selection: TagSelection) -> ComparedTagger:
    runner.on_load(f"Running {name}")
    is_cached, started = image_sha256(image) in runner.cache.predictions, time.monotonic()
    ((_, prediction),) = [result for results in runner.predict([image], image_sha256) for result in results]
    if isinstance(prediction, InputError):
        raise prediction
    description = describe(prediction, runner.files.labels, selection)
    seconds = None if is_cached else round(time.monotonic() - started, 2)
    return ComparedTagger(tagger=name, tags=list(description.tags), sentence=description.sentence, seconds=seconds)
