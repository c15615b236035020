"""Renders the Tag section: the form, the progress of a tagging job, and its result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import gradio as gr
from markupsafe import Markup

from lora_studio import guide
from lora_studio.dataset.captions.edit_history import EditState
from lora_studio.dataset.tagging.compare import ComparedTagger
from lora_studio.dataset.tagging.stage import TagResult
from lora_studio.models.catalogue import find_base
from lora_studio.plurals import format_count
from lora_studio.settings.choices import ExistingCaptions
from lora_studio.settings.job_specs import TagJob
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.state import DatasetState, TagDefaults
from lora_studio.ui.dataset.tag_panel import DEFAULT_TAGGER, TagPanel, tagger_info, takes_prompt
from lora_studio.ui.dataset.tagging import RESUMABLE, TaggingEvents, TaggingView
from lora_studio.ui.dataset.view import progress_card, shortened
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.formatting import format_duration
from lora_studio.ui.widgets.html import Tone, card, cards, note, render
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus

LOG_LINES = 40


def render_tagging(panel: TagPanel, state: DatasetState, tagging: TaggingView) -> Updates:
    """Show the running job, or the result of the latest one; fill the fields of the form that the state names."""
    is_active, is_stopping = tagging.is_active, tagging.is_stopping
    return {
        panel.state: _state_cards(state.contents, tagging),
        panel.start: gr.Button(visible=not is_active, interactive=bool(state.contents.items)),
        panel.compare: gr.Button(
            f"Compare on {state.current.name}" if state.current else "Compare on one image",
            interactive=not is_active and state.current is not None,
        ),
        panel.stop: gr.Button(
            "Stopping" if is_stopping else "Stop and save", visible=is_active, interactive=not is_stopping
        ),
        panel.resume: gr.Button(visible=tagging.status.state in RESUMABLE),
        panel.undo: gr.Button(visible=not is_active and tagging.edit is EditState.NEWEST),
        **(_fields(panel, state.tag_form) if state.tag_form else {}),
    }


def tag_defaults(contents: Contents) -> TagDefaults:
    """Return the form for a project: the tagger that suits its base, its trigger word; append if it has captions."""
    info = contents.project.info()
    base = find_base(info.base)
    has_captions = any(item.caption for item in contents.items)
    return TagDefaults(
        trigger=info.trigger_word,
        tagger=base.tagger if base else DEFAULT_TAGGER,
        existing=ExistingCaptions.APPEND if has_captions else ExistingCaptions.IGNORE,
    )


def _fields(panel: TagPanel, form: TagDefaults) -> Updates:
    updates: Updates = {panel.trigger: form.trigger}
    if form.tagger is not None:
        updates[panel.tagger] = gr.update(value=form.tagger, info=tagger_info(form.tagger))
        updates[panel.prompt] = gr.Textbox(visible=takes_prompt(form.tagger))
    if form.existing is not None:
        updates[panel.existing] = form.existing.value
    return updates


def _state_cards(contents: Contents, tagging: TaggingView) -> Markup:
    if tagging.folder is None or (tagging.edit is EditState.UNDONE and not tagging.is_active):
        return _advice(contents)
    warnings = [note(message, why, Tone.WARNING) for message, why in tagging.events.warnings.values()]
    job = _job_card(tagging.folder, tagging.status, tagging.events)
    return cards([job, *warnings, *_failures(tagging.events, tagging.status)])


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
    if status.state is JobState.DONE and (stored := folder.result()) is not None:
        result = TagResult.model_validate(stored)
        if result.compared:
            return comparison(Path(str(cast(TagJob, folder.job()).compare)).name, result.compared)
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


def comparison(image: str, compared: Sequence[ComparedTagger]) -> Markup:
    """Return what the taggers say about an image, one beside the other; tags with their confidence in percent."""
    return render("dataset/compared.html", image=image, taggers=compared)


def _summary(folder: JobFolder, status: JobStatus) -> str:
    stored = folder.result()
    if stored is None:
        return f"{status.done} of {format_count(status.total, 'image')} were tagged; their captions are saved."
    job, result = cast(TagJob, folder.job()), TagResult.model_validate(stored)
    parts = [f"{format_count(result.tagged, 'image')} tagged by {job.tagger}"]
    if result.skipped:
        parts.append(f"{result.skipped} with captions were not changed")
    return f"{'; '.join(parts)}."


def _failures(events: TaggingEvents, status: JobStatus) -> list[Markup]:
    if not events.failed or status.state is JobState.QUEUED:
        return []
    lines = shortened([f"{name}: {message}" for name, message in events.failed])
    return [
        card(f"{format_count(len(events.failed), 'image')} could not be tagged", "\n".join(lines), tone=Tone.WARNING)
    ]
