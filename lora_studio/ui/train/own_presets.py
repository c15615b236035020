"""The user's own presets in the Train tab: saved from the form, renamed, deleted, and exchanged as TOML files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gradio as gr

from lora_studio.errors import InputError
from lora_studio.planning.presets import import_preset, own_preset_file, rename_preset
from lora_studio.ui.context import Studio
from lora_studio.ui.train.state import TrainPage, TrainState
from lora_studio.ui.widgets.choices import checked_by_handlers
from lora_studio.ui.widgets.html import html


class OwnPresets(NamedTuple):
    """Saving the form as a preset; renaming, deleting, importing and exporting presets of the user's own."""

    name: gr.Textbox
    own: gr.Dropdown
    save: gr.Button
    rename: gr.Button
    delete: gr.Button
    upload: gr.UploadButton
    export: gr.Button
    download: gr.DownloadButton
    result: gr.HTML


def build_own_presets() -> OwnPresets:
    """Create the components."""
    with gr.Accordion("Your presets", open=False, elem_id="train-presets"):
        with gr.Row(elem_classes="fields"):
            name = gr.Textbox(
                label="Name",
                info="To save what differs from the guide's defaults, for any project, or to rename a preset.",
                max_lines=1,
                elem_id="train-preset-name",
            )
            own = checked_by_handlers(
                gr.Dropdown([], value=None, label="Your own", info="Load them above.", elem_id="train-preset-own")
            )
        with gr.Row():
            save = gr.Button("Save these settings as a preset", elem_id="train-preset-save")
            rename = gr.Button("Rename the selected one", elem_id="train-preset-rename")
            delete = gr.Button("Delete the selected one", elem_id="train-preset-delete")
        with gr.Row():
            upload = gr.UploadButton(
                "Import a preset", file_types=[".toml"], file_count="single", elem_id="train-preset-import"
            )
            export = gr.Button("Export the selected one", elem_id="train-preset-export")
            download = gr.DownloadButton("Download the preset", elem_id="train-preset-exported", visible=False)
        result = html(elem_id="train-preset-result")
    return OwnPresets(name, own, save, rename, delete, upload, export, download, result)


@dataclass(frozen=True)
class PresetFiles:
    """Event handlers that rename, import and export the user's own presets."""

    studio: Studio

    def rename_preset(self, page: TrainPage, own: str | None, name: str | None) -> TrainState:
        """Give the selected preset the typed name."""
        file = rename_preset(self.studio.home, own or "", name or "")
        return TrainState(None, preset_note=f"Renamed {own} to {file.stem}")

    def import_preset(self, page: TrainPage, file: str | None) -> TrainState:
        """Add an uploaded file to the user's own presets, under its name."""
        if not file:
            raise InputError("No file was uploaded.", "Select a .toml file.", code="no_file")
        added = import_preset(self.studio.home, Path(file))
        return TrainState(None, preset_note=f"Imported as {added.stem}: {added}")

    def export_preset(self, page: TrainPage, own: str | None) -> TrainState:
        """Offer the file of the selected preset as a download."""
        file = own_preset_file(self.studio.home, own or "")
        return TrainState(None, preset_note=f"{own} is ready to download.", preset_file=file)
