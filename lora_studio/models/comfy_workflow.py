"""A ComfyUI workflow that draws an image again, in the API format that ComfyUI reads from a PNG file's `prompt` text.

ComfyUI draws its noise on the CPU from the seed, as the studio does. Its samplers, its weights of words and its scaling
of a long prompt are its own, so the image is close, not equal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_studio.settings.choices import Sampler

KEYWORD = "prompt"
# Those that ComfyUI does not have become the nearest that it has.
SAMPLER_NAMES = {
    Sampler.EULER: "euler",
    Sampler.EULER_A: "euler_ancestral",
    Sampler.DDIM: "ddim",
    Sampler.PNDM: "ipndm",
    Sampler.LMS: "lms",
    Sampler.HEUN: "heun",
    Sampler.DPM_2: "dpm_2",
    Sampler.DPM_2_A: "dpm_2_ancestral",
    Sampler.DPMSOLVER: "dpmpp_2m",
    Sampler.DPMSOLVER_PP: "dpmpp_2m",
    Sampler.DPMSINGLE: "dpmpp_2s_ancestral",
}


@dataclass(frozen=True)
class WorkflowLora:
    """A LoRA file's name and its strengths."""

    file: str
    unet: float
    text_encoder: float


@dataclass(frozen=True)
class Workflow:
    """What a workflow draws; `checkpoint` is the name of the base's file, sizes are in px."""

    checkpoint: str
    loras: Sequence[WorkflowLora]
    prompt: str
    negative_prompt: str
    seed: int
    sampler: Sampler
    steps: int
    guidance: float
    width: int
    height: int
    clip_skip: int
    zero_terminal_snr: bool = False

    def to_json(self) -> str:
        """Return the workflow as JSON in ComfyUI's API format: node id -> class and inputs."""
        nodes: dict[str, dict[str, Any]] = {}

        def add(kind: str, **inputs: Any) -> str:
            number = str(len(nodes) + 1)
            nodes[number] = {"class_type": kind, "inputs": inputs}
            return number

        loader = add("CheckpointLoaderSimple", ckpt_name=self.checkpoint)
        model, clip = [loader, 0], [loader, 1]
        for lora in self.loras:
            strengths = {"strength_model": lora.unet, "strength_clip": lora.text_encoder}
            number = add("LoraLoader", model=model, clip=clip, lora_name=lora.file, **strengths)
            model, clip = [number, 0], [number, 1]
        clip = [add("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=-self.clip_skip), 0]
        positive = add("CLIPTextEncode", clip=clip, text=self.prompt)
        negative = add("CLIPTextEncode", clip=clip, text=self.negative_prompt)
        if not self.negative_prompt:
            negative = add("ConditioningZeroOut", conditioning=[negative, 0])
        sampled = add(
            "KSampler",
            model=model,
            positive=[positive, 0],
            negative=[negative, 0],
            latent_image=[add("EmptyLatentImage", width=self.width, height=self.height, batch_size=1), 0],
            seed=self.seed,
            steps=self.steps,
            cfg=self.guidance,
            sampler_name=SAMPLER_NAMES[self.sampler],
            scheduler="simple" if self.zero_terminal_snr else "normal",
            denoise=1.0,
        )
        decoded = add("VAEDecode", samples=[sampled, 0], vae=[loader, 2])
        add("SaveImage", images=[decoded, 0], filename_prefix="ComfyUI")
        return json.dumps(nodes, ensure_ascii=False)
