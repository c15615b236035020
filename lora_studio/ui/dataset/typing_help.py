"""What the Dataset tab shows while the user types: suggestions, hints, and the fields that a choice needs."""

from __future__ import annotations

from functools import partial

import gradio as gr
from markupsafe import Markup

from lora_studio.errors import StudioError
from lora_studio.ui.context import Studio
from lora_studio.ui.dataset.captions import bulk_action_changed
from lora_studio.ui.dataset.chips import suggestion_list
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.layout import DatasetLayout
from lora_studio.ui.dataset.review import caption_hints
from lora_studio.ui.dataset.suggestions import TagSuggester
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates

MAX_TYPED = 100  # characters of a tag being typed that suggestions are searched for; add_tag.js cuts there too


class TypingHelp:
    """Event handlers that update only the components beside a field."""

    def __init__(self, studio: Studio, layout: DatasetLayout, suggester: TagSuggester) -> None:
        self.studio = studio
        self.layout = layout
        self.suggester = suggester

    def wire(self) -> None:
        """Register the events."""
        review, captions, tag, project = self.layout.review, self.layout.captions, self.layout.tag, self.studio.project
        review.caption.change(
            self.caption_typed,
            [project, review.caption],
            [review.hint, review.add_trigger],
            **NO_PROGRESS,
            trigger_mode="always_last",
        )
        review.add.input(
            self.suggest,
            [project, review.current],
            review.suggestions,
            **NO_PROGRESS,
            trigger_mode="multiple",  # with always_last, gradio would send the event data of the first letter again
        )
        outputs = [captions.first, captions.second, captions.position, captions.changes, captions.previewed]
        captions.action.input(
            partial(bulk_action_changed, captions), captions.action, [*outputs, captions.apply], **NO_PROGRESS
        )
        tag.tagger.input(tag.tagger_changed, tag.tagger, tag.tagger_outputs, **NO_PROGRESS)

    def caption_typed(self, project_name: str, caption: str) -> Updates:
        """Show the number of tokens and the position of the trigger word while a caption is typed."""
        try:
            trigger = self.studio.find_project(project_name).info().trigger_word
        except StudioError:
            return {self.layout.review.hint: ""}
        return caption_hints(self.layout.review, trigger, caption or "")

    def suggest(self, project_name: str, current: str, event: gr.EventData) -> Markup:
        """Return tags that complete the typed text."""
        typed = str(event.text)[:MAX_TYPED]
        try:
            contents = Contents.of(self.studio.find_project(project_name))
        except StudioError:
            return suggestion_list(typed, [])
        return suggestion_list(typed, self.suggester.suggest(contents, typed, contents.by_id.get(current)))
