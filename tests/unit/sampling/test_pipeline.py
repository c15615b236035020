"""The sampling pipeline against diffusers' own call."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ImageChops

from lora_studio.errors import InputError
from lora_studio.sampling import pipeline as pipeline_module
from lora_studio.sampling.pipeline import SamplingPipeline, load_sampling_pipeline
from lora_studio.settings.choices import Precision
from lora_studio.workspace.project import Home
from tests.support.tiny_sdxl import save_tiny_sdxl


@pytest.fixture(scope="module")
def pipeline(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> SamplingPipeline:
    return load_sampling_pipeline(str(tiny_base), home=Home(tmp_path_factory.mktemp("home")), precision=Precision.AUTO)


def test_image_equals_diffusers(pipeline: SamplingPipeline) -> None:
    image = pipeline.generate(
        pipeline.encode("a cat", clip_skip=2),
        pipeline.encode_negative("", clip_skip=2),
        seed=7,
        steps=2,
        guidance=5.0,
        width=64,
        height=64,
    )
    expected = pipeline.pipe(
        "a cat",
        num_inference_steps=2,
        guidance_scale=5.0,
        width=64,
        height=64,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images[0]
    assert ImageChops.difference(image, expected).getbbox() is None


def test_text_encoders_are_on_the_gpu_only_while_they_encode(
    pipeline: SamplingPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("meta")
    on_gpu = replace(pipeline, device=gpu)
    places: dict[int, Any] = {}
    for number, encoder in enumerate(pipeline.base.text_encoders):
        monkeypatch.setattr(encoder, "to", lambda place, number=number: places.update({number: place}))
    seen: list[dict[int, Any]] = []
    offloaded: list[Any] = []

    def encode(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(dict(places))
        return torch.ones(1, 77, 4), torch.ones(1, 2)

    def generate(*given: Any, offload: list[Any], **named: Any) -> None:
        seen.append(dict(places))
        offloaded.extend(offload)

    monkeypatch.setattr(pipeline_module, "encode_prompt", encode)
    monkeypatch.setattr(pipeline_module, "generate_image", generate)
    text = on_gpu.encode("a cat", clip_skip=2)
    on_gpu.generate(text, text.zeros(), seed=1)
    assert seen == [{0: gpu, 1: gpu}, {0: torch.device("cpu"), 1: torch.device("cpu")}]
    assert text.hidden.device == gpu
    assert offloaded == [pipeline.base.unet]  # moves too if the memory for decoding is short


def test_prompts_are_encoded_on_the_cpu_if_memory_is_short(
    pipeline: SamplingPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = pipeline.encode("a cat", clip_skip=2)
    encode, failures = pipeline_module.encode_prompt, [torch.OutOfMemoryError()]

    def short(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if failures:
            raise failures.pop()
        return encode(*given)

    monkeypatch.setattr(pipeline_module, "encode_prompt", short)
    found = pipeline.encode("a cat", clip_skip=2)
    assert not failures
    assert torch.equal(found.hidden, expected.hidden)
    assert torch.equal(found.pooled, expected.pooled)


@pytest.mark.parametrize(("free", "precision"), [(0, "float32, int8"), (2**40, "float32"), (None, "float32")])
def test_the_unet_is_quantized_if_the_gpu_has_too_little_memory_for_it(
    tiny_base: Path, home: Home, monkeypatch: pytest.MonkeyPatch, free: int | None, precision: str
) -> None:
    monkeypatch.setattr(pipeline_module, "free_gpu_bytes", lambda device: free)
    said: list[str] = []
    loaded = load_sampling_pipeline(str(tiny_base), home=home, precision=Precision.AUTO, on_progress=said.append)
    assert loaded.precision == precision
    assert any("int8" in message for message in said) is precision.endswith("int8")
    text = loaded.encode("a cat", clip_skip=2)
    image = loaded.generate(text, text.zeros(), seed=1, steps=1, guidance=1.0, width=64, height=64)
    assert image is not None


def test_clip_skip_counts_from_the_last_layer(pipeline: SamplingPipeline) -> None:
    def hidden(skip: int | None) -> torch.Tensor:
        return pipeline.pipe.encode_prompt("a cat", do_classifier_free_guidance=False, clip_skip=skip)[0]

    assert torch.equal(pipeline.encode("a cat", clip_skip=2).hidden, hidden(None))
    assert torch.equal(pipeline.encode("a cat", clip_skip=3).hidden, hidden(1))
    assert not torch.equal(pipeline.encode("a cat", clip_skip=1).hidden, hidden(None))
    with pytest.raises(InputError, match="clip_skip is 9"):
        pipeline.encode("a cat", clip_skip=9)


def test_v_prediction_base_is_sampled_with_its_scheduler_settings(tmp_path: Path, home: Home) -> None:
    folder = save_tiny_sdxl(tmp_path / "v", prediction_type="v_prediction")
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | {"rescale_betas_zero_snr": True}))
    scheduler = load_sampling_pipeline(str(folder), home=home, precision=Precision.AUTO).pipe.scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.rescale_betas_zero_snr
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[0] == 999
    assert type(scheduler).__name__ == "EulerDiscreteScheduler"
