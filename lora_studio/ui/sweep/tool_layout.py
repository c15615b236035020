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
        with gr.Column() as source:
            lora = gr.Dropdown([], label="LoRA file", allow_custom_value=True, elem_id="tool-lora")
            path = gr.Textbox(
                label="Or a path on this computer",
                info="Any .safetensors file; used instead of the selected LoRA.",
                max_lines=1,
                visible=local,
                elem_id="tool-path",
            )
        with gr.Column(visible=False) as merge:
            others = gr.Dropdown(
                [], multiselect=True, label="Merge with", allow_custom_value=True, elem_id="tool-others"
            )
            weights = gr.Textbox(
                label="Weights",
                info="One per LoRA, the first for the LoRA file: 1, 0.5. Empty: 1 for each.",
                max_lines=1,
                elem_id="tool-weights",
            )
        with gr.Column(visible=False) as extract:
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
        with gr.Column(visible=False) as ranks:
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
        with gr.Column(visible=False) as convert:
            naming = gr.Radio(
                [("kohya (A1111, Forge, ComfyUI)", Naming.KOHYA.value), ("diffusers and peft", Naming.DIFFUSERS.value)],
                value=Naming.KOHYA.value,
                label="Format",
                elem_id="tool-naming",
            )
        with gr.Column(visible=False) as metadata:
            fields = {
                name: gr.Textbox(label=label, lines=2 if name == "description" else 1, elem_id=f"tool-{name}")
                for name, label in FIELD_LABELS.items()
            }
        with gr.Column(visible=False) as naming_of_file:
            name = gr.Textbox(
                label="Name of the new file",
                info="Empty: made from the name of the LoRA file.",
                max_lines=1,
                elem_id="tool-name",
            )
        run = gr.Button("Run", elem_id="tool-run")
        result = html(elem_id="tool-result")
        download = gr.DownloadButton("Download the new file", visible=False, elem_id="tool-download")
    assert fields.keys() == METADATA_FIELDS.keys()
    options = ToolOptions(source, merge, ranks, convert, extract, metadata, naming_of_file)
    given = (tool, lora, path, others, weights, rank, keep, naming, finetuned, base, fields, name)
    return ToolLayout(*given, options, run, result, download, gr.Timer(TICK_SECONDS, active=False))


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
