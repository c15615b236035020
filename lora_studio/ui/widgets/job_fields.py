"""Fields of a training job that are not part of the recipe: other files that it reads, and the number of GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from gradio.components import Component

from lora_studio.device import find_gpus
from lora_studio.settings.job_specs import TrainJob
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.setting_spec import SettingSpec
from lora_studio.ui.widgets.settings_form import FIELD_WIDTH

WIDE_FIELD = 2 * FIELD_WIDTH


@dataclass(frozen=True)
class JobFiles:
    """The fields of a TrainJob besides its recipe, with the names that they have there."""

    regularization: Path | None = None
    network_weights: Path | None = None
    vae: str | None = None
    num_processes: int = 1

    @classmethod
    def of(cls, job: TrainJob) -> JobFiles:
        """Return those of a job."""
        return cls(**{field.name: getattr(job, field.name) for field in fields(cls)})


class JobFields(NamedTuple):
    """The components. An empty path means that the job does not use such a file."""

    regularization: gr.Textbox
    network_weights: gr.Textbox
    vae: gr.Textbox
    processes: gr.Dropdown

    def read(self, data: Mapping[Component, Any], *, local: bool) -> JobFiles:
        """Return what the components contain; without `local` only the number of GPUs, since the others are paths."""
        if not local:
            return JobFiles(num_processes=data[self.processes] or 1)
        return JobFiles(
            regularization=_path(data[self.regularization]),
            network_weights=_path(data[self.network_weights]),
            vae=(data[self.vae] or "").strip() or None,
            num_processes=data[self.processes] or 1,
        )

    def fill(self, files: JobFiles) -> Updates:
        """Set the components; the number of GPUs is at most that of this machine."""
        return {
            self.regularization: str(files.regularization or ""),
            self.network_weights: str(files.network_weights or ""),
            self.vae: files.vae or "",
            self.processes: min(files.num_processes, len(find_gpus()) or 1),
        }


def build_job_fields(*, local: bool) -> JobFields:
    """Create the fields, the paths in a fold that is hidden unless `local`.

    The number of GPUs is shown if there are several.
    """
    declared = SettingSpec.of(TrainJob, "num_processes")
    gpus = len(find_gpus())
    with gr.Accordion("Other files", open=False, visible=local), gr.Row(elem_classes="fields"):
        regularization = _path_field(
            "regularization",
            "Regularisation images",
            "Optional: a folder with images of the class (any woman, any style), laid out like a dataset. "
            "They keep the base model from drifting and double the length of an epoch.",
        )
        network_weights = _path_field(
            "network_weights",
            "Start from a LoRA",
            "Optional: a .safetensors file to continue from; its network type, dims and alphas are offered below.",
        )
        vae = _path_field(
            "vae",
            "VAE",
            "Optional: a VAE other than the base model's own, as a Hub repository, folder or .safetensors file. "
            "Rarely needed: images that overflow in half precision are encoded again in fp32.",
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
