from __future__ import annotations

import json
from typing import Any

from lora_studio.models.comfy_workflow import SAMPLER_NAMES, Workflow, WorkflowLora
from lora_studio.settings.choices import Sampler


def nodes_of(**changes: Any) -> dict[str, dict[str, Any]]:
    values: dict[str, Any] = {
        "checkpoint": "sdxl.safetensors",
        "loras": [WorkflowLora("a.safetensors", 0.8, 0.4), WorkflowLora("b.safetensors", 1, 1)],
        "prompt": "a (cat:1.2)",
        "negative_prompt": "",
        "seed": 2**32 - 1,
        "sampler": Sampler.EULER_A,
        "steps": 25,
        "guidance": 6.0,
        "width": 832,
        "height": 1216,
        "clip_skip": 2,
    }
    nodes: dict[str, dict[str, Any]] = json.loads(Workflow(**values | changes).to_json())
    return nodes


def source(nodes: dict[str, dict[str, Any]], node: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the node that an input of another one is connected to."""
    return nodes[node["inputs"][name][0]]


def test_the_sampler_gets_model_prompts_and_latents_through_both_loras() -> None:
    nodes = nodes_of()
    [sampler] = [node for node in nodes.values() if node["class_type"] == "KSampler"]
    second = source(nodes, sampler, "model")
    first = source(nodes, second, "model")
    assert [node["inputs"]["lora_name"] for node in (first, second)] == ["a.safetensors", "b.safetensors"]
    assert (first["inputs"]["strength_model"], first["inputs"]["strength_clip"]) == (0.8, 0.4)
    assert source(nodes, first, "model")["inputs"]["ckpt_name"] == "sdxl.safetensors"
    positive = source(nodes, sampler, "positive")
    assert positive["inputs"]["text"] == "a (cat:1.2)"
    skip = source(nodes, positive, "clip")
    assert skip["inputs"]["stop_at_clip_layer"] == -2
    assert source(nodes, skip, "clip") is second
    assert source(nodes, sampler, "negative")["class_type"] == "ConditioningZeroOut"
    latents = source(nodes, sampler, "latent_image")["inputs"]
    assert (latents["width"], latents["height"]) == (832, 1216)
    assert (sampler["inputs"]["seed"], sampler["inputs"]["sampler_name"]) == (2**32 - 1, "euler_ancestral")


def test_a_negative_prompt_is_encoded() -> None:
    nodes = nodes_of(negative_prompt="blurry", loras=[])
    [sampler] = [node for node in nodes.values() if node["class_type"] == "KSampler"]
    assert source(nodes, sampler, "negative")["inputs"]["text"] == "blurry"
    assert source(nodes, sampler, "model")["class_type"] == "CheckpointLoaderSimple"


def test_every_sampler_has_a_name() -> None:
    assert SAMPLER_NAMES.keys() == set(Sampler)
