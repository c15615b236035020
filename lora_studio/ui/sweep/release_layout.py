"""The components of the fold "Release" of the Test tab."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from lora_studio.sharing.options import License
from lora_studio.ui.widgets.html import hint, html, pickable

AS_BASE = "As the base model's"
TICK_SECONDS = 1.0


class UploadFields(NamedTuple):
    """The upload to the Hub; visible only while the studio is local, since it uses this computer's token."""

    group: gr.Column
    repo: gr.Textbox
    private: gr.Checkbox
    start: gr.Button
    result: gr.HTML


class ReleaseLayout(NamedTuple):
    """All components of the fold. `preview` holds which of `pictures` was chosen, `folder` the release shown."""

    lora: gr.Dropdown
    name: gr.Textbox
    strength: gr.Number
    description: gr.Textbox
    license: gr.Dropdown
    strip_tags: gr.Checkbox
    adult: gr.Checkbox
    pictures: gr.HTML
    preview: gr.State
    make: gr.Button
    result: gr.HTML
    download: gr.DownloadButton
    folder: gr.State
    upload: UploadFields
    timer: gr.Timer

    @property
    def inputs(self) -> list[gr.components.Component]:
        """The components that the options are read from."""
        given = [self.lora, self.name, self.strength, self.description, self.license, self.strip_tags, self.adult]
        return [*given, self.preview, self.folder, self.upload.repo, self.upload.private]


def build_release_fold(*, local: bool) -> ReleaseLayout:
    """Create the fold. `local`: the studio is not shared, so that its owner's token may be used."""
    with gr.Accordion("Release", open=False, elem_id="test-release"):
        html(
            hint(
                "A folder and a zip to share: the LoRA, previews, the grid, a model card for Hugging Face, a sidecar "
                "from which A1111 and Forge fill in trigger word and strength, and the text for Civitai's form."
            )
        )
        lora = gr.Dropdown([], label="LoRA to release", allow_custom_value=True, elem_id="release-lora")
        name = gr.Textbox(
            label="Name",
            info="Of the file, as prompts write it. Empty: the run's.",
            max_lines=1,
            elem_id="release-name",
        )
        strength = gr.Number(
            label="Recommended strength",
            info="Empty: what the last test recommends, else 1. The lowest one at which the subject or style is there.",
            minimum=-4,
            maximum=4,
            step=0.05,
            elem_id="release-strength",
        )
        description = gr.Textbox(
            label="Description", info="What it draws, and what it is good for.", lines=3, elem_id="release-description"
        )
        license = gr.Dropdown(
            [AS_BASE, *(license.value for license in License if license is not License.OTHER)],
            value=AS_BASE,
            label="Licence",
            info="A LoRA is derived from its base, whose licence may demand the same.",
            elem_id="release-license",
        )
        strip_tags = gr.Checkbox(
            label="Leave the training tags out of the file",
            info="Tags, folder names and dates: programs do not need them.",
            elem_id="release-strip",
        )
        adult = gr.Checkbox(label="Not for all audiences", elem_id="release-adult")
        pictures = pickable(elem_id="release-pictures")
        make = gr.Button("Make the release", variant="primary", elem_id="release-make")
        result = html(elem_id="release-result", js="copy_text.js")
        download = gr.DownloadButton("Download the zip", visible=False, elem_id="release-download")
        upload = _upload_fields(local=local)
    fields = (lora, name, strength, description, license, strip_tags, adult, pictures, gr.State(""), make, result)
    return ReleaseLayout(*fields, download, gr.State(""), upload, gr.Timer(TICK_SECONDS, active=False))


def _upload_fields(*, local: bool) -> UploadFields:
    """Create the fields of the upload to the Hub, which are shown once there is a release."""
    with gr.Column(visible=False) as group:
        repo = gr.Textbox(
            label="Repository on Hugging Face",
            info="USER/NAME; created if it does not exist.",
            max_lines=1,
            elem_id="release-repo",
            visible=local,
        )
        private = gr.Checkbox(
            value=True,
            label="Private",
            info="Only you see it until you change that on its page.",
            elem_id="release-private",
            visible=local,
        )
        start = gr.Button("Upload to Hugging Face", elem_id="release-upload", visible=local)
        result = html(elem_id="release-uploaded")
    return UploadFields(group, repo, private, start, result)
