"""The Tag section: the form, the progress of a tagging job, and its result."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import gradio as gr
from markupsafe import Markup

from lora_studio import guide
from lora_studio.dataset.captions.edit_history import CaptionHistory, EditState
from lora_studio.dataset.tagging.catalogue import CATALOGUE
from lora_studio.errors import InputError
from lora_studio.events import HintEvent, ImageFailedEvent, TaggedEvent, WarningEvent
from lora_studio.hub import is_repo_name
from lora_studio.settings.choices import ExistingCaptions
from lora_studio.settings.job_specs import TagJob
from lora_studio.ui.context import Studio
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.view import progress_card, shortened
from lora_studio.ui.server import Mode
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.formatting import format_count, format_duration
from lora_studio.ui.widgets.html import Tone, card, cards, html, note, render
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from lora_studio.workspace.project import Project

RESUMABLE = (JobState.STOPPED, JobState.FAILED)
MAX_RECENT_CAPTIONS = 3
LOG_LINES = 40


@dataclass
class TaggingEvents:
    """Events of a tagging job up to `offset` in its event file: recent captions, failed images, warnings by code."""

    offset: int = 0
    recent: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=MAX_RECENT_CAPTIONS))
    failed: list[tuple[str, str]] = field(default_factory=list)
    warnings: dict[str, tuple[str, str]] = field(default_factory=dict)

    def update(self, folder: JobFolder) -> TaggingEvents:
        """Read the events that were added since the last call."""
        events, self.offset = folder.events(self.offset)
        for event in events:
            match event:
                case TaggedEvent():
                    self.recent.append((Path(event.path).name, event.caption))
                case ImageFailedEvent():
                    self.failed.append((Path(event.path).name, event.message))
                case WarningEvent() | HintEvent():
                    self.warnings[event.code] = (event.message, event.why)
        return self


class TagPanel:
    """Components of the section, and the job that they start."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._events: dict[Path, TaggingEvents] = {}
        declared = TagJob.model_fields
        with gr.Column(visible=False) as self.column:
            self.state = html(elem_id="tag-state")
            with gr.Row(elem_classes="actions"):
                self.start = gr.Button("Tag the images", variant="primary", elem_id="tag-start", min_width=140)
                self.stop = gr.Button("Stop and save", elem_id="tag-stop", visible=False, min_width=140)
                self.resume = gr.Button("Resume", elem_id="tag-resume", visible=False, min_width=90)
                self.undo = gr.Button("Undo the last tagging", elem_id="tag-undo", visible=False, min_width=160)
            with gr.Group(elem_classes="answers"):
                self.tagger = gr.Dropdown(
                    [(f"{name} ({known.output_kind})", name) for name, known in CATALOGUE.items()],
                    value="wd14",
                    allow_custom_value=True,
                    label="Tagger",
                    info=tagger_info("wd14"),
                    elem_id="tag-tagger",
                )
                self.trigger = gr.Textbox(
                    label="Trigger word",
                    info="Put first in every caption, once. Saved with the project.",
                    max_lines=1,
                    elem_id="tag-trigger",
                )
                self.threshold = gr.Slider(
                    0.05,
                    0.95,
                    value=declared["threshold"].get_default(),
                    step=0.01,
                    label="Threshold",
                    info=f"{declared['threshold'].description} Higher: fewer, more confident tags. "
                    "Captioning models have no threshold.",
                    elem_id="tag-threshold",
                )
                self.existing = gr.Radio(
                    [
                        ("Keep", ExistingCaptions.IGNORE.value),
                        ("Append", ExistingCaptions.APPEND.value),
                        ("Overwrite", ExistingCaptions.OVERWRITE.value),
                    ],
                    value=ExistingCaptions.IGNORE.value,
                    label="Existing captions",
                    info="Each of these can be undone afterwards.",
                    elem_id="tag-existing",
                )
                self.exclude = gr.Textbox(
                    label="Exclude tags",
                    info=declared["exclude_tags"].description,
                    placeholder="white background, simple background",
                    max_lines=2,
                    elem_id="tag-exclude",
                )
            with gr.Accordion("More", open=False, elem_id="tag-more"):
                self.also = gr.Dropdown(
                    list(CATALOGUE),
                    value=[],
                    multiselect=True,
                    allow_custom_value=True,
                    label="Combine with",
                    info=declared["also"].description,
                    elem_id="tag-also",
                )
                self.character_threshold = gr.Slider(
                    0.05,
                    1.0,
                    value=declared["character_threshold"].get_default(),
                    step=0.01,
                    label="Character threshold",
                    info=f"{declared['character_threshold'].description} At 1 none are written.",
                    elem_id="tag-character-threshold",
                )
                self.only = gr.Textbox(
                    label="Allow only these tags",
                    info=declared["only_tags"].description,
                    max_lines=2,
                    elem_id="tag-only",
                )

    @property
    def inputs(self) -> set[Any]:
        """Components of the form."""
        return {*self._fields}

    @property
    def outputs(self) -> list[Any]:
        """Components that the section changes."""
        return [
            self.column,
            self.state,
            self.start,
            self.stop,
            self.resume,
            self.undo,
            *self._fields,
        ]

    @property
    def _fields(self) -> list[Any]:
        thresholds = [self.threshold, self.character_threshold]
        return [self.tagger, self.also, self.trigger, *thresholds, self.existing, self.exclude, self.only]

    @property
    def tagger_outputs(self) -> list[Any]:
        """Components that change with the tagger."""
        return [self.tagger, self.threshold, self.character_threshold]

    def fill_form(self, contents: Contents) -> Updates:
        """Fill the form for a project: the tagger that suits its base, its trigger word; append if it has captions."""
        info = contents.project.info()
        base = guide.find_base(info.base)
        tagger = base.tagger if base else "wd14"
        captioned = any(item.caption for item in contents.items)
        return {
            self.tagger: gr.update(value=tagger, info=tagger_info(tagger)),
            self.trigger: info.trigger_word,
            self.existing: (ExistingCaptions.APPEND if captioned else ExistingCaptions.IGNORE).value,
        }

    def tagger_changed(self, tagger: str | None) -> Updates:
        """Describe another tagger, and enable the thresholds if it has them."""
        known = CATALOGUE.get(tagger or "")
        return {
            self.tagger: gr.update(info=tagger_info(tagger or "")),
            **{
                slider: gr.Slider(interactive=known is None or known.output_kind == "tags")
                for slider in (self.threshold, self.character_threshold)
            },
        }

    def start_job(self, project: Project, contents: Contents, data: Mapping[Any, Any]) -> JobFolder:
        """Write the job and start its worker process; save the trigger word with the project."""
        if not contents.items:
            raise InputError(f"{project.name} has no images yet.", "Import some first.", code="no_images")
        if self.is_running(project):
            raise InputError("A tagging job is already running.", "Wait for it, or stop it first.", code="busy")
        job = TagJob.parse(
            {
                "dataset": project.dataset_dir,
                "tagger": self._tagger(data[self.tagger]),
                "also": [self._tagger(name) for name in data[self.also] or []],
                "threshold": data[self.threshold],
                "character_threshold": data[self.character_threshold],
                "trigger_word": (data[self.trigger] or "").strip(),
                "existing": data[self.existing],
                "exclude_tags": data[self.exclude] or "",
                "only_tags": data[self.only] or "",
            }
        )
        info = project.info()
        if info.trigger_word != job.trigger_word:
            project.save_info(info.model_copy(update={"trigger_word": job.trigger_word}))
        return self.studio.jobs.start(project.new_tag_dir(), job)

    def is_running(self, project: Project) -> bool:
        """Return whether a tagging job is running or queued."""
        folder = latest_job(project)
        return folder is not None and folder.status().state.is_active

    def request_stop(self, project: Project) -> None:
        """Ask the tagging job to stop; raise InputError if none is running."""
        folder = latest_job(project)
        if folder is None or not folder.status().state.is_active:
            raise InputError("No tagging job is running.", "There is nothing to stop.", code="no_job")
        folder.request_stop()

    def resume_job(self, project: Project) -> None:
        """Resume a tagging job that was stopped or failed; raise InputError if there is none."""
        folder = latest_job(project)
        if folder is None or folder.status().state not in RESUMABLE:
            raise InputError("There is no stopped tagging job.", "Start a new one.", code="no_job")
        self.studio.jobs.resume(folder)

    def render(self, project: Project, contents: Contents) -> Updates:
        """Show the running job, or the result of the latest one."""
        folder = latest_job(project)
        status = folder.status() if folder else JobStatus()
        alive = status.state.is_active
        edit = _edit_state(project, folder)
        return {
            self.state: self._state(contents, folder if alive or edit is not EditState.UNDONE else None, status),
            self.start: gr.Button(visible=not alive, interactive=bool(contents.items)),
            self.stop: gr.Button(
                "Stopping" if folder and folder.stop_requested() else "Stop and save",
                visible=alive,
                interactive=not (folder and folder.stop_requested()),
            ),
            self.resume: gr.Button(visible=status.state in RESUMABLE),
            self.undo: gr.Button(visible=not alive and edit is EditState.NEWEST),
        }

    def render_key(self, project: Project) -> str:
        """Return a value that changes when the section has to be rendered again."""
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
        if self.studio.mode is not Mode.LOCAL and tagger not in CATALOGUE and not is_repo_name(tagger):
            raise InputError(
                f"Tagger {tagger!r} is neither in the list nor a Hub repository.",
                "Folders on this computer can be used only when the studio is not shared.",
                code="tagger",
            )
        return tagger

    def _state(self, contents: Contents, folder: JobFolder | None, status: JobStatus) -> Markup:
        if folder is None:
            return _advice(contents)
        events = self._events.setdefault(folder.path, TaggingEvents()).update(folder)
        warnings = [note(message, why, Tone.WARNING) for message, why in events.warnings.values()]
        return cards([_job_card(folder, status, events), *warnings, *_failures(events, status)])


def tagger_info(tagger: str) -> str:
    """Return what a tagger is good for."""
    known = CATALOGUE.get(tagger)
    if known is None:
        return "A Hub repository or a folder in the layout of a WD v3 tagger or of BLIP."
    return f"{known.why} Downloaded on first use." if isinstance(known.location, str) else known.why


def latest_job(project: Project) -> JobFolder | None:
    """Return the latest tagging job of a project."""
    jobs = [job for job in project.jobs() if job.path.parent.name == "tags"]
    return jobs[-1] if jobs else None


def _edit_state(project: Project, folder: JobFolder | None) -> EditState:
    """Return the state of a tagging job's edit in the caption history."""
    return CaptionHistory.of(project.dataset_dir).state_of_job(folder.path) if folder else EditState.NONE


def _advice(contents: Contents) -> Markup:
    """Return the guide's advice before the first tagging job."""
    if not contents.items:
        return Markup("")
    without = sum(not item.caption for item in contents.items)
    advice = " ".join(guide.WORKFLOW["dataset"].todo[1:3])
    return cards(
        [
            card(
                f"{format_count(without, 'image')} without a caption" if without else "Every image has a caption",
                advice,
            )
        ]
    )


def _job_card(folder: JobFolder, status: JobStatus, events: TaggingEvents) -> Markup:
    match status.state:
        case JobState.QUEUED:
            return card("Queued", status.message, "It starts automatically. Stop removes it from the queue.")
        case JobState.RUNNING:
            left = [f"{format_duration(status.seconds_left)} left"] if status.seconds_left is not None else []
            latest = [f"{name}: {caption}" for name, caption in reversed(events.recent)]
            title = "Tagging" if status.done else status.message or "Tagging"
            return progress_card(title, status.done, status.total, "\n".join([*left, *latest]))
        case JobState.FAILED:
            log = render("dataset/log.html", log=folder.log_tail(LOG_LINES))
            return card("Tagging failed", status.message, status.remedy, Tone.ERROR) + log
        case JobState.STOPPED:
            return card(
                "Tagging was stopped",
                _summary(folder, status),
                "Resume tags the remaining images; undo restores the previous captions.",
            )
        case JobState.DONE:
            return card("Tagged", _summary(folder, status), "Read every caption yourself, in Review.", Tone.OK)
    return card("Not started", status.message)


def _summary(folder: JobFolder, status: JobStatus) -> str:
    result = folder.result()
    if result is None:
        return f"{status.done} of {format_count(status.total, 'image')} were tagged; their captions are saved."
    job = cast(TagJob, folder.job())
    parts = [f"{format_count(result.get('tagged', 0), 'image')} tagged by {job.tagger}"]
    if result.get("skipped"):
        parts.append(f"{result['skipped']} with captions were not changed")
    return f"{'; '.join(parts)}."


def _failures(events: TaggingEvents, status: JobStatus) -> list[Markup]:
    if not events.failed or status.state is JobState.QUEUED:
        return []
    lines = shortened([f"{name}: {message}" for name, message in events.failed])
    return [
        card(f"{format_count(len(events.failed), 'image')} could not be tagged", "\n".join(lines), tone=Tone.WARNING)
    ]
