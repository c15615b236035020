"""The parameters of a sweep's cells: what their files say, and the key of what determines their pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lora_studio.dataset.images.decode import file_sha256
from lora_studio.device import torch_device, torch_dtype
from lora_studio.errors import InputError
from lora_studio.models.comfy_workflow import Workflow, WorkflowLora
from lora_studio.models.locate import PARTS, cached_base, read_base_config, resolve_base, weights_file
from lora_studio.models.png_info import CPU_NOISE, image_settings, infotext
from lora_studio.models.samplers import SAMPLERS
from lora_studio.models.weights_hash import folder_hash
from lora_studio.sampling.cells import AppliedLora, CellKey, SweepPlan, base_label
from lora_studio.sampling.pipeline import SamplingPipeline, precision_text
from lora_studio.sampling.reuse import CellTexts, content_key
from lora_studio.settings.choices import BasePrecision, Precision
from lora_studio.settings.job_specs import SweepJob
from lora_studio.workspace.project import Home


@dataclass(frozen=True)
class BaseFacts:
    """What of a base determines the pixels that it draws, and its native resolution in px."""

    hash: str
    prediction_type: str
    zero_terminal_snr: bool
    native_resolution: int
    precision: str

    @classmethod
    def of(cls, pipeline: SamplingPipeline, known: BaseFacts | None) -> BaseFacts:
        """Return the facts of a loaded base. Its hash is not computed again if it is `known`."""
        base = pipeline.base
        own_hash = base.hash if known is None else known.hash
        return cls(own_hash, base.prediction_type, base.zero_terminal_snr, base.native_resolution, pipeline.precision)


def read_base_facts(name: str, home: Home, precision: Precision) -> BaseFacts | None:
    """Return the facts of a base without loading it, for a device with the memory for its weights as they are.

    None if it is not on this machine or cannot be used, which loading reports.
    """
    with suppress(InputError, OSError):
        source = cached_base(resolve_base(name, home))
        if source is None:
            return None
        config, path = read_base_config(source), Path(source.location)
        if source.kind == "file":
            own_hash = file_sha256(path)
        else:
            own_hash = folder_hash([weights_file(path / part) for part in PARTS])
        dtype, _ = torch_dtype(precision, torch_device())
        return BaseFacts(
            hash=own_hash,
            prediction_type=config.prediction_type,
            zero_terminal_snr=config.zero_terminal_snr,
            native_resolution=config.native_resolution,
            precision=precision_text(dtype, BasePrecision.FULL),
        )
    return None


def cell_size(job: SweepJob, native: int) -> tuple[int, int]:
    """Return width and height in px; the base's native resolution where the job sets none."""
    return job.width or native, job.height or native


def cell_settings(job: SweepJob, seed: int, size: tuple[int, int]) -> dict[str, str | int | float]:
    """Return the settings of an image as A1111's infotext has them."""
    sampler = SAMPLERS[job.sampler].title
    return image_settings(steps=job.steps, sampler=sampler, guidance=job.guidance, seed=seed, size=size)


def cell_texts(plan: SweepPlan, key: CellKey, base: BaseFacts, lora_hashes: Mapping[Path, str]) -> CellTexts:
    """Return the texts of a cell; `lora_hashes` are the content hashes of the LoRA files."""
    job, applied = plan.job, plan.applied(key)
    settings = cell_settings(job, key.seed, cell_size(job, base.native_resolution))
    negative = plan.negative_prompt(key.base)
    determinants = settings | {
        "Prompt": key.prompt,
        "Negative prompt": negative,
        "Model hash": base.hash,
        "Prediction": [base.prediction_type, base.zero_terminal_snr],
        "Clip skip": job.clip_skip,
        "Precision": base.precision,
        "Loras": [[lora_hashes[lora.file.path], lora.unet, lora.text_encoder] for lora in applied],
    }
    settings |= {"Model hash": base.hash[:10], "Model": base_label(key.base)}
    settings |= {"Clip skip": job.clip_skip, **CPU_NOISE, "Precision": base.precision}
    if applied:
        settings["Lora hashes"] = ", ".join(f"{lora.file.name}: {lora.file.model_hash[:12]}" for lora in applied)
    prompt = " ".join([key.prompt, *(lora.prompt_text for lora in applied)]).strip()
    workflow = _workflow(plan, key, base, applied)
    return CellTexts(infotext(prompt, negative, settings), workflow.to_json(), content_key(determinants))


def _workflow(plan: SweepPlan, key: CellKey, base: BaseFacts, applied: Sequence[AppliedLora]) -> Workflow:
    job, (width, height) = plan.job, cell_size(plan.job, base.native_resolution)
    return Workflow(
        checkpoint=f"{base_label(key.base)}.safetensors",
        loras=[WorkflowLora(lora.file.path.name, lora.unet, lora.text_encoder) for lora in applied],
        prompt=key.prompt,
        negative_prompt=plan.negative_prompt(key.base),
        seed=key.seed,
        sampler=job.sampler,
        steps=job.steps,
        guidance=job.guidance,
        width=width,
        height=height,
        clip_skip=job.clip_skip,
        zero_terminal_snr=base.zero_terminal_snr,
    )
