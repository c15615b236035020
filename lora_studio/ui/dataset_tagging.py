"""Tag: the form, the job at work, and what came of it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import gradio as gr
from markupsafe import Markup

from lora_studio import guide
from lora_studio.config import Existing, TagJob
from lora_studio.errors import InputError
from lora_studio.planning.trigger import check_trigger
from lora_studio.project import Project
from lora_studio.runs import JobFolder, State, Status
from lora_studio.ui.components import Tone, card, cards, count_of, duration, html, note
from lora_studio.ui.context import Studio, Updates
from lora_studio.ui.dataset_contents import Contents
from lora_studio.ui.dataset_view import NAMES_SHOWN, progress_card
from lora_studio.ui.server import Mode

TAGGERS = {
    "wd14": "WD v3: tags",
    "blip": "BLIP: sentences",
    "demo": "Embedded small tagger: for the example set",
}
WHY_TAGGER = {
    "wd14": "Booru tags, for anime and illustration; downloaded from the Hub at the first use.",
    "blip": "Plain sentences, for photographs; downloaded from the Hub at the first use.",
    "demo": "Ships with the studio and knows emoji and symbols; quick, to try things out.",
}
HUB_NAME = re.compile(r"[\w.\-]+/[\w.\-]+")
LATEST_SHOWN = 3
LOG_LINES = 40


@dataclass
class Told:
    """What a tagging job told up to now: its latest captions and what failed."""

    offset: int = 0
    latest: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=LATEST_SHOWN))
    failed: list[tuple[str, str]] = field(default_factory=list)
    said: dict[str, tuple[str, str]] = field(default_factory=dict)

    def read(self, folder: JobFolder) -> Told:
        """Take in what is new."""
        events, self.offset = folder.events(self.offset)
        for event in events:
            name = Path(str(event.get("path", ""))).name
            match event.get("event"):
                case "tagged":
                    self.latest.append((name, str(event.get("caption", ""))))
                case "image_failed":
                    self.failed.append((name, str(event.get("message", ""))))
                case "warning" | "hint":
                    self.said[str(event.get("code", ""))] = (
                        str(event.get("message", "")),
                        str(event.get("why", "")),
                    )
        return self


class TagPanel:
    """The right side of Tag."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._told: dict[Path, Told] = {}
        declared = TagJob.model_fields
        with gr.Column(visible=False) as self.column:
            self.state = html(elem_id="tag-state")
            with gr.Row(elem_classes="actions"):
                self.start = gr.Button("Tag the images", variant="primary", elem_id="tag-start", min_width=140)
                self.stop = gr.Button("Stop and keep", elem_id="tag-stop", visible=False, min_width=140)
                self.undo = gr.Button("Undo the last tagging", elem_id="tag-undo", visible=False, min_width=160)
            with gr.Group(elem_classes="answers"):
                self.tagger = gr.Dropdown(
                    [(text, name) for name, text in TAGGERS.items()],
                    value="wd14",
                    allow_custom_value=True,
                    label="Tagger",
                    info=WHY_TAGGER["wd14"],
                    elem_id="tag-tagger",
                )
                self.trigger = gr.Textbox(
                    label="Trigger word",
                    info="Put first in every caption, never doubled. Kept with the project.",
                    max_lines=1,
                    elem_id="tag-trigger",
                )
                self.threshold = gr.Slider(
                    0.05,
                    0.95,
                    value=declared["threshold"].get_default(),
                    step=0.01,
                    label="Threshold",
                    info=f"{declared['threshold'].description} Higher: fewer, surer tags. Sentences have none.",
                    elem_id="tag-threshold",
                )
                self.existing = gr.Radio(
                    [
                        ("Leave them", Existing.IGNORE.value),
                        ("Add to them", Existing.APPEND.value),
                        ("Replace them", Existing.OVERWRITE.value),
                    ],
                    value=Existing.IGNORE.value,
                    label="Captions that are there",
                    info="Whatever you choose can be undone afterwards.",
                    elem_id="tag-existing",
                )

    @property
    def inputs(self) -> set[Any]:
        """The form."""
        return {self.tagger, self.trigger, self.threshold, self.existing}

    @property
    def outputs(self) -> list[Any]:
        """Everything that this panel changes."""
        return [
            self.column,
            self.state,
            self.start,
            self.stop,
            self.undo,
            self.tagger,
            self.trigger,
            self.threshold,
            self.existing,
        ]

    def fill(self, project: Project) -> Updates:
        """The form as the project wants it: the tagger that suits its base, its trigger word."""
        info = project.info()
        base = guide.find_base(info.base)
        tagger = base.tagger if base else "wd14"
        return {self.tagger: gr.Dropdown(value=tagger, info=WHY_TAGGER[tagger]), self.trigger: info.trigger_word}

    def chosen(self, tagger: str | None) -> Updates:
        """Another tagger: say what it is good for, and whether it has a threshold."""
        known = WHY_TAGGER.get(tagger or "")
        return {
            self.tagger: gr.Dropdown(info=known or "A Hub repository or a folder, of WD v3 or BLIP layout."),
            self.threshold: gr.Slider(interactive=tagger != "blip"),
        }

    def begin(self, project: Project, contents: Contents, data: Mapping[Any, Any]) -> JobFolder:
        """Write the job and start its worker process; keeps the trigger word with the project."""
        if not contents.items:
            raise InputError(f"{project.name} has no images yet.", "Import some first.", code="no_images")
        project.check_idle("tag")
        job = TagJob.parse(
            {
                "dataset": project.dataset_dir,
                "tagger": self._tagger(data[self.tagger]),
                "threshold": data[self.threshold],
                "trigger_word": (data[self.trigger] or "").strip(),
                "existing": data[self.existing],
            }
        )
        info = project.info()
        if info.trigger_word != job.trigger_word:
            project.save_info(info.model_copy(update={"trigger_word": job.trigger_word}))
        return self.studio.jobs.start(project.new_tag_dir(), job)

    def show(self, project: Project, contents: Contents) -> Updates:
        """The job at work, else what the latest one did."""
        folder = latest_job(project)
        status = folder.status() if folder else Status()
        alive = status.state.alive
        return {
            self.state: self._state(contents, folder, status),
            self.start: gr.Button(visible=not alive, interactive=bool(contents.items)),
            self.stop: gr.Button(
                "Stopping" if folder and folder.stop_requested() else "Stop and keep",
                visible=alive,
                interactive=not (folder and folder.stop_requested()),
            ),
            self.undo: gr.Button(visible=not alive and can_undo(project)),
        }

    def signature(self, project: Project) -> str:
        """Changes whenever there is something new to show."""
        folder = latest_job(project)
        if folder is None:
            return project.name
        status = folder.status()
        size = folder.events_file.stat().st_size if folder.events_file.exists() else 0
        return f"{project.name}|{folder.name}|{status.state}|{status.updated_at}|{size}|{folder.stop_requested()}"

    def _tagger(self, given: str | None) -> str:
        tagger = (given or "").strip()
        if not tagger:
            raise InputError("No tagger is chosen.", "Choose one from the list.", code="no_tagger")
        if self.studio.mode is not Mode.LOCAL and tagger not in TAGGERS and not HUB_NAME.fullmatch(tagger):
            raise InputError(
                f"Tagger {tagger!r} is none of the list and no Hub repository.",
                "Folders of this computer can be chosen only where the studio runs for you alone.",
                code="tagger",
            )
        return tagger

    def _state(self, contents: Contents, folder: JobFolder | None, status: Status) -> Markup:
        if folder is None:
            return _before(contents)
        told = self._told.setdefault(folder.path, Told()).read(folder)
        said = [note(message, why, Tone.LOOK) for message, why in told.said.values()]
        return cards([_job_card(folder, status, told), *said, *_failures(told, status)])


def latest_job(project: Project) -> JobFolder | None:
    """The latest tagging of a project."""
    jobs = [job for job in project.jobs() if job.path.parent.name == "tags"]
    return jobs[-1] if jobs else None


def _before(contents: Contents) -> Markup:
    """What there is to say before the first tagging."""
    if not contents.items:
        return Markup("")
    without = sum(not item.caption for item in contents.items)
    advice = " ".join(guide.WORKFLOW["dataset"].todo[1:3])
    return cards(
        [card(f"{count_of(without, 'image')} without a caption" if without else "Every image has a caption", advice)]
    )


def trigger_notes(word: str) -> Markup:
    """What the guide would say about a trigger word."""
    return cards(note(caution.message, caution.why, Tone.LOOK) for caution in check_trigger(word))


def _job_card(folder: JobFolder, status: Status, told: Told) -> Markup:
    match status.state:
        case State.QUEUED:
            return card("Waiting for its turn", status.message, "It starts by itself. Stop takes it out of the queue.")
        case State.RUNNING:
            left = [f"{duration(status.seconds_left)} left"] if status.seconds_left is not None else []
            latest = [f"{name}: {caption}" for name, caption in reversed(told.latest)]
            title = "Tagging" if status.done else status.message or "Tagging"
            return progress_card(title, status.done, status.total, "\n".join([*left, *latest]))
        case State.FAILED:
            log = Markup('<details><summary class="hint">Log</summary><pre class="log">{}</pre></details>').format(
                folder.log_tail(LOG_LINES)
            )
            return card("The tagging failed", status.message, status.remedy, Tone.BAD) + log
        case State.STOPPED:
            return card("Tagging was stopped", _did(folder, status, told), "Tag the images goes on with the rest.")
        case State.DONE:
            return card("Tagged", _did(folder, status, told), "Read every caption yourself, in Review.", Tone.OK)
    return card("Not started", status.message)


def _did(folder: JobFolder, status: Status, told: Told) -> str:
    result = folder.result()
    if result is None:
        return f"{status.done} of {count_of(status.total, 'image')} were looked at; their captions are kept."
    job = cast(TagJob, folder.job())
    parts = [f"{count_of(result.get('tagged', 0), 'image')} tagged by {TAGGERS.get(job.tagger, job.tagger)}"]
    if result.get("skipped"):
        parts.append(f"{result['skipped']} had captions and were left as they are")
    return f"{'; '.join(parts)}."


def _failures(told: Told, status: Status) -> list[Markup]:
    if not told.failed or status.state is State.QUEUED:
        return []
    lines = [f"{name}: {message}" for name, message in told.failed[:NAMES_SHOWN]]
    if len(told.failed) > NAMES_SHOWN:
        lines.append(f"and {len(told.failed) - NAMES_SHOWN} more")
    return [card(f"{count_of(len(told.failed), 'image')} could not be tagged", "\n".join(lines), tone=Tone.LOOK)]
