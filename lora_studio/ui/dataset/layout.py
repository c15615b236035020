"""The components of the Dataset tab, without their events."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from lora_studio.dataset.images.decode import IMAGE_SUFFIXES
from lora_studio.ui.dataset.caption_panels import (
    CaptionsPanel,
    ReviewPanel,
    StatisticsPanel,
    build_captions,
    build_review,
    build_statistics,
)
from lora_studio.ui.dataset.image_item import Sort
from lora_studio.ui.dataset.state import Section
from lora_studio.ui.dataset.tag_panel import TagPanel, build_tag_panel
from lora_studio.ui.shortcuts import Place, key_line
from lora_studio.ui.widgets.html import empty_card, html, pickable, render
from lora_studio.ui.widgets.segments import segments

INCLUDES_TAG, EXCLUDES_TAG = "with tag", "without tag"
SCAN_TICK_SECONDS = 0.5
ALL = "*"  # instead of the ids of selected images: every image that matches the filters, on all pages
IMPORT_FILE_TYPES = ["image", *sorted(IMAGE_SUFFIXES), ".txt", ".caption", ".zip"]


class Top(NamedTuple):
    """Tiles, section switch, and places for errors, the last action and progress."""

    tiles: gr.HTML
    section: gr.Radio
    notice: gr.HTML
    message: gr.HTML
    progress: gr.HTML


class Left(NamedTuple):
    """Left side: a placeholder, the grid with its filters, or what Curate lists."""

    empty: gr.Column
    choose: gr.UploadButton
    example: gr.Button
    grid_side: gr.Column
    filter: gr.HTML
    tag: gr.Textbox
    tag_side: gr.Radio
    sort: gr.Dropdown
    selection: gr.HTML
    grid: gr.HTML
    curate_side: gr.Column
    groups: gr.HTML
    flagged: gr.HTML
    pairs: gr.HTML
    buckets: gr.HTML


class ImportSide(NamedTuple):
    """Right side of Import."""

    column: gr.Column
    files: gr.File
    folder: gr.Textbox
    import_folder: gr.Button
    report: gr.HTML


class CurateSide(NamedTuple):
    """Right side of Curate."""

    column: gr.Column
    status: gr.HTML
    apply: gr.Button
    scan: gr.Button
    restore: gr.Button
    keep_flagged: gr.Button
    move_loose: gr.Button
    keys: gr.HTML
    variety: gr.HTML
    aside: gr.HTML


class Held(NamedTuple):
    """What the page remembers between events, see `DatasetState`."""

    finding: gr.Textbox
    chosen: gr.State
    set_name: gr.State
    is_viewing: gr.State
    sort: gr.State
    grid_page: gr.State
    shown_scan: gr.State
    shown_tagging: gr.State


class DatasetLayout(NamedTuple):
    """All components of the tab. `scan_timer` ticks during an import or scan."""

    top: Top
    left: Left
    imports: ImportSide
    curate: CurateSide
    tag: TagPanel
    review: ReviewPanel
    captions: CaptionsPanel
    statistics: StatisticsPanel
    held: Held
    viewer: gr.HTML
    scan_timer: gr.Timer

    @property
    def inputs(self) -> list[Component]:
        """Inputs of every handler: the section, the filters, and the caption that may be unsaved."""
        left, review = self.left, self.review
        filters = [left.tag, left.tag_side, left.sort]
        draft = [review.current, review.original, review.caption]
        return [self.top.section, *filters, *draft, self.statistics.page, *self.held]

    @property
    def outputs(self) -> list[Block]:
        """All components that handlers of the tab may change."""
        unchanged = (
            *(self.review.add, self.review.suggestions, self.review.keys),
            *(self.curate.keys, self.left.selection),
        )
        panels = (self.imports, self.curate, self.tag, self.review, self.captions, self.statistics)
        parts: list[Block] = [*self.top, *self.left, *(item for panel in panels for item in panel), *self.held]
        parts += [self.viewer, self.scan_timer]
        return [part for part in parts if part not in unchanged]


def build_layout(*, local: bool) -> DatasetLayout:
    """Create the components. `local`: the studio is not shared, so that paths of this computer can be given."""
    top = build_top()
    with gr.Row(elem_classes="sides dataset-sides"):
        with gr.Column(scale=3, min_width=340):
            left = build_left()
        with gr.Column(scale=2, min_width=320, elem_classes="dataset-aside"):
            sides = build_import(local=local), build_curate(), build_tag_panel()
            panels = build_review(), build_captions(), build_statistics()
            finding = gr.Textbox(visible=False, elem_id="dataset-finding")
    held = Held(
        finding,
        gr.State(()),
        gr.State(""),
        gr.State(False),
        gr.State(Sort.NAME.value),
        gr.State(0),
        gr.State(""),
        gr.State(""),
    )
    viewer = html(js=("pick.js", "image_viewer.js"), elem_id="dataset-viewer")
    return DatasetLayout(top, left, *sides, *panels, held, viewer, gr.Timer(SCAN_TICK_SECONDS, active=False))


def build_top() -> Top:
    """Build the top of the tab."""
    return Top(
        tiles=html(elem_id="dataset-tiles"),
        section=segments(
            [section.value for section in Section],
            value=Section.IMPORT.value,
            label="Section",
            elem_id="dataset-section",
        ),
        notice=html(elem_id="dataset-notice"),
        message=pickable(elem_id="dataset-message"),
        progress=html(elem_id="dataset-progress"),
    )


def build_left() -> Left:
    """Build the left side."""
    with gr.Column(elem_classes="empty-state") as empty:
        html(
            empty_card(
                "Your images will appear here",
                "Ten to fifty good images are enough for a character or a concept: above 512 px, varied in pose and "
                "background, without duplicates. Caption files with the same name are imported too.",
            )
        )
        with gr.Row(elem_classes="actions"):
            choose = gr.UploadButton(
                "Import images",
                file_count="multiple",
                file_types=IMPORT_FILE_TYPES,
                variant="primary",
                scale=0,
                min_width=220,
                elem_id="dataset-choose",
            )
            example = gr.Button("Use the example set", scale=0, min_width=220, elem_id="dataset-example")
    with gr.Column(visible=False) as grid_side:
        chosen = pickable(elem_id="dataset-filter")
        with gr.Row(elem_classes="tag-filter"):
            tag = gr.Textbox(
                placeholder="Tag: long hair",
                label="Filter by tag",
                show_label=False,
                container=False,
                max_lines=1,
                scale=1,
                min_width=140,
                elem_id="dataset-filter-tag",
            )
            tag_side = segments(
                [INCLUDES_TAG, EXCLUDES_TAG],
                value=INCLUDES_TAG,
                label="Images",
                elem_id="dataset-filter-side",
                classes="small",
                scale=0,
                min_width=190,
            )
            sort = gr.Dropdown(
                [order.value for order in Sort],
                value=Sort.NAME.value,
                label="Sort",
                show_label=False,
                container=False,
                scale=0,
                min_width=170,
                elem_id="dataset-sort",
            )
        selected = html(render("dataset/selection.html", all=ALL), js="grid_select.js", elem_id="dataset-selection")
        grid = pickable(elem_id="dataset-grid")
    with gr.Column(visible=False) as curate_side:
        groups = pickable(elem_id="dataset-groups")
        flagged = pickable(elem_id="dataset-flagged")
        pairs = pickable(elem_id="dataset-pairs")
        buckets = pickable(elem_id="dataset-buckets")
    return Left(
        *(empty, choose, example, grid_side, chosen, tag, tag_side, sort, selected, grid),
        *(curate_side, groups, flagged, pairs, buckets),
    )


def build_import(*, local: bool) -> ImportSide:
    """Build the right side of Import. Only a studio that is not shared (`local`) imports folders by their path."""
    with gr.Column() as column:
        files = gr.File(
            label="Drop images with their captions here, or a zip",
            file_count="multiple",
            file_types=IMPORT_FILE_TYPES,
            height=170,
            elem_id="dataset-files",
        )
        with gr.Group(visible=local, elem_classes="answers"):
            folder = gr.Textbox(
                label="Or a folder on this computer",
                info="Images are copied; kohya folders (10_name) keep their repeats.",
                placeholder="/home/me/pictures/saria",
                max_lines=1,
                elem_id="dataset-folder",
            )
            import_folder = gr.Button("Import the folder", elem_id="dataset-import-folder")
        report = html(elem_id="dataset-report")
    return ImportSide(column, files, folder, import_folder, report)


def build_curate() -> CurateSide:
    """Build the right side of Curate."""
    with gr.Column(visible=False) as column:
        status = html(elem_id="curate-status")
        apply = gr.Button("Set aside all proposed", variant="primary", elem_id="curate-apply", visible=False)
        with gr.Row(elem_classes="actions"):
            scan = gr.Button("Scan", elem_id="curate-scan", min_width=110)
            restore = gr.Button("Restore all", elem_id="curate-restore", min_width=110, visible=False)
        keep_flagged = gr.Button(elem_id="curate-keep-flagged", visible=False)
        move_loose = gr.Button(elem_id="curate-move-loose", visible=False)
        keys = html(key_line(Place.CURATE), js="curate_keys.js", classes="curate-keys")
        variety = html(elem_id="curate-variety")
        aside = pickable(elem_id="curate-aside")
    return CurateSide(column, status, apply, scan, restore, keep_flagged, move_loose, keys, variety, aside)
