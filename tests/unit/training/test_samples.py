"""Samples during training: prompts, the models' modes, and stop requests."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image

from lora_studio.models.pipeline import TextEmbeddings
from lora_studio.training import samples
from lora_studio.training.batch_loss import BatchLoss
from lora_studio.training.data.batch import BatchTensors
from lora_studio.training.samples import SampleSettings, generate_samples, sample_prompts, save_sample
from lora_studio.workspace.project import Home
from tests.support.events import Events, append_to, of
from tests.support.training_runs import make_images, make_job, train_into


def out_of_memory(*given: Any, **named: Any) -> NoReturn:
    raise torch.OutOfMemoryError


SETTINGS = SampleSettings(side=1020, steps=3, guidance=6.0, seed=42)
EMBEDDINGS = TextEmbeddings(torch.ones(1, 77, 4), torch.ones(1, 2))
CPU = torch.device("cpu")


class Models:
    """Models in training mode with a pipeline that records what it is called with, and draws nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.unet, self.encoder = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        self.devices: list[torch.device] = []
        vae = SimpleNamespace(device=torch.device("meta"), to=self.devices.append)
        self.base: Any = SimpleNamespace(unet=self.unet, text_encoders=[self.encoder], vae=vae, latent_factor=8)
        self.calls: list[dict[str, Any]] = []
        self.images: list[Image.Image | None] = [Image.new("RGB", (8, 8)), None, Image.new("RGB", (8, 8))]
        self.stopped = False
        self.events: Events = []
        monkeypatch.setattr(samples, "make_pipeline", lambda base: None)
        monkeypatch.setattr(samples, "generate_image", self.generate)

    def generate(
        self, pipe: None, prompt: TextEmbeddings, negative: TextEmbeddings, **options: Any
    ) -> Image.Image | None:
        training = self.unet.training or self.encoder.training or torch.is_grad_enabled()
        self.calls.append({"training": training, "negative": negative, **options})
        return self.images[len(self.calls) - 1]

    def samples(self, prompts: list[str]) -> Any:
        return generate_samples(
            self.base,
            prompts,
            lambda text: EMBEDDINGS,
            SETTINGS,
            device=CPU,
            autocast=nullcontext,
            report=append_to(self.events),
            should_stop=lambda: self.stopped,
        )


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    """Models with a recording pipeline."""
    return Models(monkeypatch)


def test_prompts_have_the_trigger_word_and_an_empty_one_is_the_first_caption() -> None:
    job = make_job("base", Path("data"), sample_prompts=["{trigger}, hat", "a tree"])
    job.recipe.sample_prompts = [*job.recipe.sample_prompts, " "]
    dataset: Any = SimpleNamespace(items=[SimpleNamespace(caption="inkstamp, owl")])
    assert sample_prompts(job, dataset) == ["inkstamp, hat", "a tree", "inkstamp, owl"]


def test_each_prompt_gives_an_image_in_eval_mode_without_gradients(models: Models) -> None:
    for image, expected in zip(models.samples(["a", "b", "c"]), models.images, strict=True):
        assert image is expected
        assert models.unet.training
        assert models.encoder.training
        assert torch.is_grad_enabled()
    assert [call["training"] for call in models.calls] == [False] * 3
    first = models.calls[0]
    assert (first["seed"], first["steps"], first["guidance"]) == (42, 3, 6.0)
    assert first["width"] == first["height"] == 1016  # a multiple of the VAE's factor
    assert not first["negative"].hidden.any()


def test_the_vae_returns_to_its_device_also_after_an_error(models: Models) -> None:
    models.images = []
    with pytest.raises(IndexError):
        next(models.samples(["a"]))
    assert models.devices == [CPU, torch.device("meta")]
    assert models.unet.training


def test_a_stop_request_ends_the_samples_unless_an_image_is_complete(models: Models) -> None:
    found = models.samples(["a", "b", "c"])
    models.stopped = True
    assert next(found) is models.images[0]
    assert list(found) == []
    assert len(models.calls) == 2


def test_out_of_memory_ends_the_samples_with_a_warning(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
    found = models.samples(["a", "b", "c"])
    assert next(found) is models.images[0]
    assert len(freed) == 1
    monkeypatch.setattr(samples, "generate_image", out_of_memory)
    assert list(found) == []
    assert [values["code"] for values in of(models.events, "warning")] == ["sample_out_of_memory"]
    assert len(freed) == 2
    assert models.devices[-1] == torch.device("meta")
    assert models.unet.training


def test_a_run_goes_on_and_resumes_when_memory_runs_out(
    training_inputs: Path, tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that suffices neither for a tile nor for a validation batch costs the images and figures alone."""
    monkeypatch.setattr(AutoencoderKL, "decode", out_of_memory)
    compute = BatchLoss.__call__

    def compute_in_training(batch_loss: BatchLoss, batch: BatchTensors) -> torch.Tensor:
        return compute(batch_loss, batch) if batch_loss.base.unet.training else out_of_memory()

    monkeypatch.setattr(BatchLoss, "__call__", compute_in_training)
    images = make_images(tmp_path / "images", [(64, 64)] * 3)
    job = make_job(
        training_inputs / "base", images, sample_every_n_epochs=1, sample_steps=1, validation_split=0.3, batch_size=1
    )
    result, events = train_into(job, tmp_path / "run", home, stop_after=3)
    assert result.stopped
    result, more = train_into(job, tmp_path / "run", home, resume=True)
    assert result.lora is not None
    assert result.lora.is_file()
    for some in (events, more):
        codes = {values["code"] for values in of(some, "warning")}
        assert codes == {"sample_out_of_memory", "validation_out_of_memory"}
        assert not of(some, "sample")
        assert not of(some, "validation")


def test_a_sample_is_written_as_png(tmp_path: Path) -> None:
    save_sample(tmp_path / "a.png", Image.new("RGB", (4, 2), "red"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with Image.open(tmp_path / "a.png") as image:
        assert (image.format, image.size, image.getpixel((0, 0))) == ("PNG", (4, 2), (255, 0, 0))
