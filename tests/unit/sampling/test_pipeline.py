"""The sampling pipeline against diffusers' own call."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import ImageChops

from lora_studio.errors import InputError
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
