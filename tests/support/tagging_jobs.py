"""Tagging jobs with a tagger that predicts colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora_studio.dataset.captions.edit_history import CaptionHistory
from lora_studio.dataset.captions.edits import plan_edit, set_text
from lora_studio.dataset.tagging import stage as tagging
from lora_studio.dataset.tagging.interface import Prediction
from lora_studio.dataset.tagging.labels import Label
from lora_studio.dataset.tagging.stage import TagResult, tag
from lora_studio.events import Event
from lora_studio.settings.job_specs import TagJob
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home


class RedTagger:
    """A tagger, and its files at once, that predicts the red value of the first pixel as a tag.

    Batches of more than `max_batch` images raise `error`.
    """

    image_size = 16
    labels = (*(Label(f"red {value}", 0) for value in range(256)), Label("thing", 0), Label("hero", 4))

    def __init__(self, name: str = "red", confidence: float = 0.9, max_batch: int = 99) -> None:
        self.name, self.confidence, self.max_batch = name, confidence, max_batch
        self.batches: list[int] = []
        self.loaded = 0
        self.sentence = ""
        self.before_batch: Callable[[], None] = lambda: None
        self.error: Exception = torch.OutOfMemoryError("CUDA out of memory")

    def content_hash(self) -> str:
        return self.name

    def with_prompt(self, prompt: str, max_new_tokens: int) -> RedTagger:
        return self

    def load(self, *, on_cpu: bool = False) -> RedTagger:
        self.loaded += 1
        return self

    def preprocess(self, image: Image.Image) -> int:
        return image.getpixel((0, 0))[0]

    def predict(self, inputs: Sequence[int]) -> list[Prediction]:
        self.before_batch()
        if len(inputs) > self.max_batch:
            raise self.error
        self.batches.append(len(inputs))
        confidences = np.array([self.confidence, 0.5, 0.7], np.float16)
        return [
            Prediction(np.array([value, 256, 257], np.uint16), confidences, self.sentence, np.ones(4, np.float16))
            for value in inputs
        ]


class TaggingJob:
    """A folder of images, a job folder, and a function to run the stage with them."""

    def __init__(self, folder: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images, self.home = folder / "images", home
        self.images.mkdir()
        self.tagger = RedTagger()
        self.events: list[dict[str, Any]] = []
        self.stop_after = 10**9
        self.taggers = {"red": self.tagger}
        monkeypatch.setattr(tagging, "find_tagger", lambda name, **options: self.taggers[name])
        self.job_path = folder / "job"

    def add(self, name: str, red: int = 0, caption: str | None = None) -> Path:
        path = self.images / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (24, 24), (red, 9, 9)).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption)
        return path

    def run(self, *, resume: bool = False, **settings: Any) -> TagResult:
        if resume:
            self.folder = JobFolder(self.job_path)
        else:
            job = TagJob.parse({"dataset": self.images, "tagger": "red", **settings})
            self.folder = JobFolder.create(self.job_path, job)

        def report(event: Event) -> None:
            self.events.append(self.folder.emit(event).record())

        job = self.folder.job()
        assert isinstance(job, TagJob)
        return tag(job, self.folder, home=self.home, report=report, should_stop=self.should_stop, resume=resume)

    def should_stop(self) -> bool:
        return sum(event["event"] == "tagged" for event in self.events) >= self.stop_after

    @property
    def history(self) -> CaptionHistory:
        return CaptionHistory.of(self.images)

    def edit(self, name: str, text: str) -> None:
        self.history.apply(plan_edit([self.images / name], set_text(text, f"Edited {name}")))

    def interrupt_with(self, action: Callable[[], None]) -> None:
        """Add ten images, and carry out an action once the first of them are tagged."""
        for index in range(10):
            self.add(f"{index}.png", index)
        pending = [action]
        self.tagger.before_batch = lambda: pending.pop()() if pending and self.names("tagged") else None

    def captions(self) -> dict[str, str]:
        return {
            path.relative_to(self.images).as_posix(): path.read_text("utf-8")
            for path in sorted([*self.images.glob("*.txt"), *self.images.glob("*/*.txt")])
        }

    def names(self, event: str) -> list[str]:
        return [Path(item["path"]).name for item in self.events if item["event"] == event]
