"""The components of the fold "LoRA files" of the Test tab."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from lora_studio.lora.header import METADATA_FIELDS
from lora_studio.lora.tools.reports import Naming
from lora_studio.models.catalogue import BASES
from lora_studio.ui.widgets.html import hint, html
from lora_studio.workspace.tool_run import Tool

LABELS = {
    "Inspect": Tool.INSPECT,
    "Resize to a smaller rank": Tool.RESIZE,
    "Merge LoRAs": Tool.MERGE,
    "Convert the format": Tool.CONVERT,
    "Extract from a checkpoint": Tool.EXTRACT,
    "Edit metadata": Tool.METADATA,
    "Strip metadata": Tool.STRIP,
}
FIELD_LABELS = {
    "title": "Title",
    "author": "Author",
    "license": "License",
    "description": "Description",
    "trigger": "Trigger words",
    "tags": "Tags",
}
TICK_SECONDS = 1.0


class ToolOptions(NamedTuple):
    """Groups of options; only those of the chosen tool are visible."""

    source: gr.Column
    merge: gr.Column
    rank: gr.Column
    convert: gr.Column
    extract: gr.Column
    metadata: gr.Column
    name: gr.Column


class ToolLayout(NamedTuple):
    """All components of the fold. The path of any file is visible only while the studio is local."""

    tool: gr.Dropdown
    lora: gr.Dropdown
    path: gr.Textbox
    others: gr.Dropdown
    weights: gr.Textbox
    rank: gr.Number
    keep: gr.Number
    naming: gr.Radio
    finetuned: gr.Textbox
    base: gr.Dropdown
    fields: dict[str, gr.Textbox]
    name: gr.Textbox
    options: ToolOptions
    run: gr.Button
    result: gr.HTML
    download: gr.DownloadButton
    timer: gr.Timer

    @property
    def inputs(self) -> list[gr.components.Component]:
        """The components that a tool's arguments are read from."""
        given = [self.tool, self.lora, self.path, self.others, self.weights, self.rank, self.keep, self.naming]
        return [*given, self.finetuned, self.base, *self.fields.values(), self.name]


def build_tools(*, local: bool) -> ToolLayout:
    """Create the fold. `local`: the studio is not shared, so that paths of this computer can be given."""
    with gr.Accordion("LoRA files", open=False, elem_id="test-tools"):
        html(hint("Tools for LoRA files of any trainer. A new file is written into the project; none is overwritten."))
        labels = [label for label, tool in LABELS.items() if local or tool is not Tool.EXTRACT]
        tool = gr.Dropdown(labels, value=labels[0], label="Tool", elem_id="tool-kind")
        source, lora, path = _source_options(local=local)
        merge, others, weights = _merge_options()
        extract, finetuned, base = _extract_options()
        ranks, rank, keep = _rank_options()
        convert, naming = _convert_options()
        metadata, fields = _metadata_options()
        name_group, name = _name_options()
        run = gr.Button("Run", elem_id="tool-run")
        result = html(elem_id="tool-result")
        download = gr.DownloadButton("Download the new file", visible=False, elem_id="tool-download")
    options = ToolOptions(source, merge, ranks, convert, extract, metadata, name_group)
    given = (tool, lora, path, others, weights, rank, keep, naming, finetuned, base, fields, name)
    return ToolLayout(*given, options, run, result, download, gr.Timer(TICK_SECONDS, active=False))


def _source_options(*, local: bool) -> tuple[gr.Column, gr.Dropdown, gr.Textbox]:
    """Create the fields of the file that a tool reads."""
    with gr.Column() as group:
        lora = gr.Dropdown([], label="LoRA file", allow_custom_value=True, elem_id="tool-lora")
        path = gr.Textbox(
            label="Or a path on this computer",
            info="Any .safetensors file; used instead of the selected LoRA.",
            max_lines=1,
            visible=local,
            elem_id="tool-path",
        )
    return group, lora, path


def _merge_options() -> tuple[gr.Column, gr.Dropdown, gr.Textbox]:
    """Create the fields of the other LoRAs and the weights of a merge."""
    with gr.Column(visible=False) as group:
        others = gr.Dropdown([], multiselect=True, label="Merge with", allow_custom_value=True, elem_id="tool-others")
        weights = gr.Textbox(
            label="Weights",
            info="One per LoRA, the first for the LoRA file: 1, 0.5. Empty: 1 for each.",
            max_lines=1,
            elem_id="tool-weights",
        )
    return group, others, weights


def _extract_options() -> tuple[gr.Column, gr.Textbox, gr.Dropdown]:
    """Create the fields of the checkpoint and its base that a LoRA is extracted from."""
    with gr.Column(visible=False) as group:
        finetuned = gr.Textbox(
            label="Finetuned checkpoint",
            info="The path of a .safetensors file or a diffusers folder, or a Hub repository.",
            max_lines=1,
            elem_id="tool-finetuned",
        )
        base = gr.Dropdown(
            list(BASES),
            value=None,
            allow_custom_value=True,
            label="Its base model",
            info="The checkpoint that it was trained from: a name, a path or a Hub repository.",
            elem_id="tool-base",
        )
    return group, finetuned, base


def _rank_options() -> tuple[gr.Column, gr.Number, gr.Number]:
    """Create the fields of the largest rank and the share of the norm to keep."""
    with gr.Column(visible=False) as group:
        rank = gr.Number(
            label="Largest rank",
            info="0 when merging: the ranks are concatenated, which is exact.",
            precision=0,
            value=0,
            minimum=0,
            elem_id="tool-rank",
        )
        keep = gr.Number(
            label="Share of the norm to keep",
            info="Like 0.95: each layer gets as few ranks as keep it. 0: only the rank counts.",
            value=0,
            minimum=0,
            maximum=1,
            elem_id="tool-keep",
        )
    return group, rank, keep


def _convert_options() -> tuple[gr.Column, gr.Radio]:
    """Create the choice of the format that a file is converted to."""
    with gr.Column(visible=False) as group:
        naming = gr.Radio(
            [("kohya (A1111, Forge, ComfyUI)", Naming.KOHYA.value), ("diffusers and peft", Naming.DIFFUSERS.value)],
            value=Naming.KOHYA.value,
            label="Format",
            elem_id="tool-naming",
        )
    return group, naming


def _metadata_options() -> tuple[gr.Column, dict[str, gr.Textbox]]:
    """Create the fields of the metadata that can be edited, by name."""
    assert FIELD_LABELS.keys() == METADATA_FIELDS.keys()
    with gr.Column(visible=False) as group:
        fields = {
            name: gr.Textbox(label=label, lines=2 if name == "description" else 1, elem_id=f"tool-{name}")
            for name, label in FIELD_LABELS.items()
        }
    return group, fields


def _name_options() -> tuple[gr.Column, gr.Textbox]:
    """Create the field of the new file's name."""
    with gr.Column(visible=False) as group:
        name = gr.Textbox(
            label="Name of the new file",
            info="Empty: made from the name of the LoRA file.",
            max_lines=1,
            elem_id="tool-name",
        )
    return group, name


def visible_options(tool: Tool) -> set[str]:
    """Return which groups of options a tool has, by their names in `ToolOptions`."""
    match tool:
        case Tool.INSPECT:
            return {"source"}
        case Tool.RESIZE:
            return {"source", "rank", "name"}
        case Tool.MERGE:
            return {"source", "merge", "rank", "name"}
        case Tool.CONVERT:
            return {"source", "convert", "name"}
        case Tool.EXTRACT:
            return {"extract", "rank", "name"}
        case Tool.METADATA:
            return {"source", "metadata", "name"}
        case Tool.STRIP:
            return {"source", "name"}
        case Tool.UPLOAD:
            return set()  # of the fold Release
