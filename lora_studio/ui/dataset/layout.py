"""What the Dataset tab is made of: the components of its parts, without what they do."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import gradio as gr

from lora_studio.dataset.images.decode import IMAGE_SUFFIXES
from lora_studio.ui.dataset.contents import Filter
from lora_studio.ui.widgets.html import empty_card, html, pickable

INCLUDES_TAG, EXCLUDES_TAG = "contains", "does not contain"
GIVEN_FILES = ["image", *sorted(IMAGE_SUFFIXES), ".txt", ".caption", ".zip"]
Data = Mapping[Any, Any]  # values of an event's inputs, by component


# The arrows choose a group or row; a key presses its first button that has it. What was chosen is gone after most of
# them: then the one that took its place is chosen.
KEYS_SCRIPT = """
if (!window.studioCurateKeys) {
  window.studioCurateKeys = true;
  let place = -1;
  const rows = () => [...document.querySelectorAll('#dataset-groups .group, #dataset-flagged .entry')];
  const choose = (all, next) => {
    place = Math.max(0, Math.min(next, all.length - 1));
    all.forEach((row, index) => row.classList.toggle('here', index === place));
    if (all[place]) all[place].scrollIntoView({ block: 'nearest' });
  };
  const show = () => { if (place >= 0 && !document.querySelector('.here') && rows().length) choose(rows(), place); };
  document.addEventListener('keydown', (event) => {
    const typing = 'input:not([type=radio]), textarea, select, [contenteditable], [role="tab"], [role="listbox"]';
    const keys = document.querySelector('.curate-keys');
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest(typing)) return;
    if (!keys || !keys.offsetParent) return;
    const all = rows(), name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const press = (inside) => inside && inside.querySelector(`button[data-key="${name}"]`);
    let button = null;
    if (name === 'ArrowDown' || name === 'ArrowUp') {
      if (event.target.closest('input') || !all.length) return;
      choose(all, place + (name === 'ArrowDown' ? 1 : -1));
    } else if (name === 'z') button = press(document.getElementById('dataset-message'));
    else if (['k', 'u', 'Delete'].includes(name)) button = press(all[place]);
    else return;
    event.preventDefault();
    if (button) button.click();
  });
  new MutationObserver(show).observe(document.body, { childList: true, subtree: true });
}
"""


class Section(StrEnum):
    """The parts of the tab, in the order of the way."""

    IMPORT = "Import"
    CURATE = "Curate"
    TAG = "Tag"
    CAPTIONS = "Captions"
    REVIEW = "Review"
    STATISTICS = "Statistics"


class Top(NamedTuple):
    """Figures, the choice of part, and what there is to say."""

    tiles: gr.HTML
    section: gr.Radio
    notice: gr.HTML
    message: gr.HTML
    progress: gr.HTML


class Left(NamedTuple):
    """The images: what will be there, the grid, or groups of copies and what else to look at."""

    empty: gr.Column
    choose: gr.UploadButton
    example: gr.Button
    grid_side: gr.Column
    filter: gr.Radio
    tag: gr.Textbox
    tag_side: gr.Radio
    grid: gr.HTML
    curate_side: gr.Column
    groups: gr.HTML
    flagged: gr.HTML
    pairs: gr.HTML
    buckets: gr.HTML


class ImportSide(NamedTuple):
    """The right side of Import."""

    column: gr.Column
    files: gr.File
    folder: gr.Textbox
    import_folder: gr.Button
    report: gr.HTML


class CurateSide(NamedTuple):
    """The right side of Curate."""

    column: gr.Column
    status: gr.HTML
    apply: gr.Button
    scan: gr.Button
    restore: gr.Button
    move_loose: gr.Button
    variety: gr.HTML
    aside: gr.HTML


def build_top() -> Top:
    """What stands above all parts."""
    return Top(
        tiles=html(elem_id="dataset-tiles"),
        section=gr.Radio(
            [section.value for section in Section],
            value=Section.IMPORT.value,
            label="Part of the dataset",
            show_label=False,
            container=False,
            elem_id="dataset-section",
            elem_classes="segments",
        ),
        notice=html(elem_id="dataset-notice"),
        message=pickable(elem_id="dataset-message"),
        progress=html(elem_id="dataset-progress"),
    )


def build_left() -> Left:
    """The images."""
    with gr.Column(elem_classes="empty-state") as empty:
        html(
            empty_card(
                "Your images will stand here",
                "Ten to fifty good ones are enough for a character or a concept: above 512 px, varied in pose and "
                "background, without copies. Captions beside them come along.",
            )
        )
        with gr.Row(elem_classes="actions"):
            choose = gr.UploadButton(
                "Import images",
                file_count="multiple",
                file_types=GIVEN_FILES,
                variant="primary",
                scale=0,
                min_width=220,
                elem_id="dataset-choose",
            )
            example = gr.Button("Use the example set", scale=0, min_width=220, elem_id="dataset-example")
    with gr.Column(visible=False) as grid_side:
        chosen = gr.Radio(
            [item.value for item in Filter],
            value=Filter.ALL.value,
            label="Show",
            show_label=False,
            container=False,
            elem_id="dataset-filter",
            elem_classes="segments small",
        )
        with gr.Row(elem_classes="tag-filter"):
            tag = gr.Textbox(
                placeholder="Tag, like long hair",
                label="Tag to filter by",
                show_label=False,
                container=False,
                max_lines=1,
                scale=1,
                min_width=140,
                elem_id="dataset-filter-tag",
            )
            tag_side = gr.Radio(
                [INCLUDES_TAG, EXCLUDES_TAG],
                value=INCLUDES_TAG,
                label="Images that",
                show_label=False,
                container=False,
                scale=0,
                min_width=190,
                elem_id="dataset-filter-side",
                elem_classes="segments small",
            )
        grid = pickable(elem_id="dataset-grid")
    with gr.Column(visible=False) as curate_side:
        groups = pickable(elem_id="dataset-groups")
        flagged = pickable(elem_id="dataset-flagged")
        pairs = pickable(elem_id="dataset-pairs")
        buckets = pickable(elem_id="dataset-buckets")
    return Left(
        empty, choose, example, grid_side, chosen, tag, tag_side, grid, curate_side, groups, flagged, pairs, buckets
    )


def build_import(*, local: bool) -> ImportSide:
    """Import; a folder can be named only where the studio runs for one person."""
    with gr.Column() as column:
        files = gr.File(
            label="Drop images here, with their captions, or a zip",
            file_count="multiple",
            file_types=GIVEN_FILES,
            height=170,
            elem_id="dataset-files",
        )
        with gr.Group(visible=local, elem_classes="answers"):
            folder = gr.Textbox(
                label="Or a folder of this computer",
                info="Its images are copied; folders named like 10_name, as kohya's tools have them, stay sets.",
                placeholder="/home/me/pictures/saria",
                max_lines=1,
                elem_id="dataset-folder",
            )
            import_folder = gr.Button("Import the folder", elem_id="dataset-import-folder")
        report = html(elem_id="dataset-report")
    return ImportSide(column, files, folder, import_folder, report)


def build_curate() -> CurateSide:
    """Curate."""
    with gr.Column(visible=False) as column:
        status = html(elem_id="curate-status")
        apply = gr.Button("Set aside all proposed", variant="primary", elem_id="curate-apply", visible=False)
        with gr.Row(elem_classes="actions"):
            scan = gr.Button("Scan", elem_id="curate-scan", min_width=110)
            restore = gr.Button("Put all back", elem_id="curate-restore", min_width=110, visible=False)
        move_loose = gr.Button(elem_id="curate-move-loose", visible=False)
        gr.HTML(
            '<p class="hint">Keys: ↓ and ↑ go through, Delete sets aside, K keeps, U uses the copy instead, '
            "Z takes it back.</p>",
            js_on_load=KEYS_SCRIPT,
            apply_default_css=False,
            elem_classes=["studio-html", "curate-keys"],
        )
        variety = html(elem_id="curate-variety")
        aside = pickable(elem_id="curate-aside")
    return CurateSide(column, status, apply, scan, restore, move_loose, variety, aside)
