"""What a training job has beside the recipe: other files that it reads, and how many GPUs it takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from gradio.components import Component

from lora_studio.device import find_gpus
from lora_studio.settings.job_specs import TrainJob
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.settings_form import FIELD_WIDTH, Spec

WIDE_FIELD = 2 * FIELD_WIDTH


class JobFields(NamedTuple):
    """The components; an empty text means that the job has no such file."""

    regularization: gr.Textbox
    network_weights: gr.Textbox
    vae: gr.Textbox
    processes: gr.Dropdown

    def values(self, data: Mapping[Component, Any]) -> dict[str, Any]:
        """The fields of a TrainJob that these components hold."""
        return {
            "regularization": _path(data[self.regularization]),
            "network_weights": _path(data[self.network_weights]),
            "vae": (data[self.vae] or "").strip() or None,
            "num_processes": data[self.processes] or 1,
        }

    def fill(self, job: TrainJob | None) -> Updates:
        """Show what a job has; nothing of it without one."""
        return {
            self.regularization: str(job.regularization or "") if job else "",
            self.network_weights: str(job.network_weights or "") if job else "",
            self.vae: (job.vae or "") if job else "",
            self.processes: min(job.num_processes, len(find_gpus()) or 1) if job else 1,
        }


def build_job_fields() -> JobFields:
    """Build the components in a fold of their own; GPUs to choose from show where there are several."""
    declared = Spec.of(TrainJob, "num_processes")
    gpus = len(find_gpus())
    with gr.Accordion("Other files", open=False), gr.Row(elem_classes="fields"):
        regularization = _path_field(
            "regularization",
            "Regularisation images",
            "Optional: a folder with images of the class (any woman, any style), laid out like a dataset. "
            "They keep the base from drifting, and double an epoch.",
        )
        network_weights = _path_field(
            "network_weights",
            "Start from a LoRA",
            "Optional: a .safetensors file to train on from. Network type, dims and alphas must be those of the file.",
        )
        vae = _path_field(
            "vae",
            "VAE",
            "Optional: another VAE than the base's own: Hub repository, folder or .safetensors file. Rarely needed, "
            "since what overflows in half precision is encoded again in full.",
        )
    processes = gr.Dropdown(
        list(range(1, gpus + 1)) or [1],
        value=1,
        label=declared.label,
        info=declared.why,
        visible=gpus > 1,
        elem_id="train-num_processes",
    )
    return JobFields(regularization, network_weights, vae, processes)


def _path_field(name: str, label: str, info: str) -> gr.Textbox:
    return gr.Textbox(
        label=label,
        info=info,
        placeholder="empty",
        max_lines=1,
        min_width=WIDE_FIELD,
        elem_classes="field",
        elem_id=f"train-{name}",
    )


def _path(content: str | None) -> Path | None:
    text = (content or "").strip()
    return Path(text).expanduser().absolute() if text else None
