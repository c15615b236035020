"""The sections of the Train tab: the shown run or the form of a new one, the table of all runs, and comparisons."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

import gradio as gr

from lora_studio.errors import InputError, StudioError
from lora_studio.ui.context import Page, Studio
from lora_studio.ui.roles import Role, allowed
from lora_studio.ui.train.compare import Compare, CompareLayout, build_compare
from lora_studio.ui.train.ledger import COMPARE, OPEN, Ledger, LedgerLayout, build_ledger, picked
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.html import error_card
from lora_studio.ui.widgets.segments import segments
from lora_studio.workspace.project import Project

ShowRun = Callable[[Project, str], Updates]
"""Returns the updates of the section of a run that show this one; raises InputError if there is none."""


class Section(StrEnum):
    """The sections, by the text of their buttons."""

    RUN = "Run"
    LEDGER = "All runs"
    COMPARE = "Compare"


class SectionLayout(NamedTuple):
    """The choice of the section, and the three sections."""

    section: gr.Radio
    run: gr.Column
    ledger: LedgerLayout
    compare: CompareLayout


def build_section_choice() -> gr.Radio:
    """Create the choice of the section."""
    return segments(
        [section.value for section in Section], value=Section.RUN.value, label="Section", elem_id="train-section"
    )


def build_other_sections(section: gr.Radio, run: gr.Column) -> SectionLayout:
    """Create the sections besides that of a run."""
    return SectionLayout(section, run, build_ledger(), build_compare())


class Sections:
    """Event handlers that switch between the sections.

    `open_run` returns the updates that show a run, `edit_run` those that fill the form with its settings.
    """

    def __init__(self, studio: Studio, layout: SectionLayout, open_run: ShowRun, edit_run: ShowRun) -> None:
        self.studio = studio
        self.layout = layout
        self.open_run = open_run
        self.edit_run = edit_run
        self.ledger = Ledger(studio, layout.ledger)
        self.compare = Compare(studio, layout.compare)

    def wire(self, run_page: Page) -> Page:
        """Register the events; return the page of the tab, `run_page` being that of the section of a run."""
        studio, layout, progress = self.studio, self.layout, self.studio.with_progress
        self.ledger.wire()
        self.compare.wire()
        columns = [layout.section, layout.run, layout.ledger.column, layout.compare.column]
        own = [*columns, *self.ledger.outputs, *self.compare.outputs]
        inputs = [studio.project, studio.run, layout.section, layout.ledger.scope]
        layout.section.input(self.switch, inputs, own, **progress)
        studio.edited.change(self.show_form, None, columns, **NO_PROGRESS)
        outputs = list(dict.fromkeys([*own, *run_page.outputs]))
        for component in (layout.ledger.detail, layout.ledger.suggestion):
            component.click(self.click_in_ledger, [studio.project], outputs, **progress)

        def refresh(project: Project) -> Updates:
            return {**self._at(Section.RUN), **self.ledger.hide_detail(), **run_page.refresh(project)}

        return Page(refresh, outputs)

    @allowed(Role.GUEST)
    def switch(self, project: str, run: str | None, section: str, scope: str) -> Updates:
        """Show another section."""
        updates = self._at(Section(section))
        if section == Section.LEDGER:
            return {**updates, **self.ledger.hide_detail(), **self.ledger.show(project, scope)}
        if section == Section.COMPARE:
            return {**updates, **self.compare.show(project, None, run)}
        return updates

    def show_form(self) -> Updates:
        """Show the section of a run, in which the form is: Test has chosen what fills it."""
        return self._at(Section.RUN)

    @allowed(Role.GUEST)
    def click_in_ledger(self, project: str, event: gr.EventData) -> Updates:
        """Open a run, fill the form with its settings, or compare it with its parent."""
        try:
            action, owner, run = picked(event.pick)
            if owner != project:
                raise InputError(
                    f"{run} is in {owner!r}.", "Select that project at the top first.", code="other_project"
                )
            if action == COMPARE:
                return {**self._at(Section.COMPARE), **self.compare.show(project, None, run)}
            show = self.open_run if action == OPEN else self.edit_run
            return {**self._at(Section.RUN), **show(self.studio.find_project(project), run)}
        except StudioError as error:
            return {self.layout.ledger.notice: error_card(error)}

    def _at(self, section: Section) -> Updates:
        layout = self.layout
        return {
            layout.section: section.value,
            layout.run: gr.Column(visible=section is Section.RUN),
            layout.ledger.column: gr.Column(visible=section is Section.LEDGER),
            layout.compare.column: gr.Column(visible=section is Section.COMPARE),
        }
