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

from lora_studio.errors import InputError
from lora_studio.measures.samples import DrawnSample, SampleMeasurer
from lora_studio.models.catalogue import BASES
from lora_studio.models.pipeline import TextEmbeddings
from lora_studio.models.png_info import read_parameters
from lora_studio.settings.choices import Sampler
from lora_studio.training import samples
from lora_studio.training.batch_loss import BatchLoss
from lora_studio.training.data.batch import BatchTensors
from lora_studio.training.resume_state import load_state
from lora_studio.training.samples import Sample, generate_samples, samples_of
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.events import Events, append_to, of
from tests.support.sample_measures import measures
from tests.support.training_runs import make_images, make_job, same, train_into, weights_of


def out_of_memory(*given: Any, **named: Any) -> NoReturn:
    raise torch.OutOfMemoryError


EMBEDDINGS = TextEmbeddings(torch.ones(1, 77, 4), torch.ones(1, 2))


def sample(prompt: str, **changes: Any) -> Sample:
    settings = {"seed": 42, "width": 1016, "height": 512, "steps": 3, "guidance": 6.0, "sampler": Sampler.DDIM}
    return Sample(**{"prompt": prompt, "negative_prompt": "", **settings, **changes})


class Models:
    """Models in training mode with a pipeline that records what it is called with, and draws nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.unet, self.encoder = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        self.base: Any = SimpleNamespace(unet=self.unet, text_encoders=[self.encoder], latent_factor=8)
        self.calls: list[dict[str, Any]] = []
        self.images: list[Image.Image | None] = [Image.new("RGB", (8, 8)), None, Image.new("RGB", (8, 8))]
        self.stopped = False
        self.events: Events = []
        self.pipe = SimpleNamespace(scheduler=None)
        monkeypatch.setattr(samples, "make_pipeline", lambda base: self.pipe)
        monkeypatch.setattr(samples, "make_scheduler", lambda base, sampler: sampler)
        monkeypatch.setattr(samples, "generate_image", self.generate)

    def generate(
        self, pipe: Any, prompt: TextEmbeddings, negative: TextEmbeddings, **options: Any
    ) -> Image.Image | None:
        training = self.unet.training or self.encoder.training or torch.is_grad_enabled()
        self.calls.append({"training": training, "negative": negative, "sampler": pipe.scheduler, **options})
        return self.images[len(self.calls) - 1]

    def samples(self, prompts: list[str], **changes: Any) -> Any:
        return generate_samples(
            self.base,
            [sample(prompt, **changes) for prompt in prompts],
            lambda text: EMBEDDINGS,
            autocast=nullcontext,
            report=append_to(self.events),
            should_stop=lambda: self.stopped,
        )


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    """Models with a recording pipeline."""
    return Models(monkeypatch)


def samples_with(base: str = "base", **settings: Any) -> list[Sample]:
    """Return the samples of a job for a dataset of one image and a base of 1024 px."""
    dataset: Any = SimpleNamespace(items=[SimpleNamespace(caption="inkstamp, owl")])
    loaded: Any = SimpleNamespace(native_resolution=1024, latent_factor=8)
    return samples_of(make_job(base, Path("data"), **settings), dataset, loaded)


def test_prompts_have_the_trigger_word_and_an_empty_one_is_the_first_caption() -> None:
    lines = ["{trigger}, hat --n {trigger}, green", "a tree", "--s 5"]
    found = samples_with(sample_prompts=lines, sample_negative_prompt="blurry")
    assert [each.prompt for each in found] == ["inkstamp, hat", "a tree", "inkstamp, owl"]
    assert [each.negative_prompt for each in found] == ["inkstamp, green", "blurry", "blurry"]


def test_samples_have_the_bases_size_and_negative_prompt_whatever_the_training_resolution_is() -> None:
    (plain,) = samples_with("SDXL 1.0", sample_prompts=["a"], resolution=512, seed=9)
    assert plain == sample(
        "a",
        negative_prompt=BASES["SDXL 1.0"].negative_prompt,
        seed=9,
        width=1024,
        height=1024,
        steps=20,
        sampler=Sampler.EULER,
    )
    set_all = {"sample_width": 832, "sample_height": 1216, "sample_seed": 0, "sample_steps": 4, "sample_guidance": 1.0}
    form, line = samples_with(sample_prompts=["a", "b --w 640 --d 5 --l 2 --ss lms"], **set_all)
    assert form == sample("a", seed=0, width=832, height=1216, steps=4, guidance=1.0, sampler=Sampler.EULER)
    assert line == sample("b", seed=5, width=640, height=1216, steps=4, guidance=2.0, sampler=Sampler.LMS)


def test_each_prompt_gives_an_image_in_eval_mode_without_gradients(models: Models) -> None:
    for image, expected in zip(models.samples(["a", "b", "c"]), models.images, strict=True):
        assert image is expected
        assert models.unet.training
        assert models.encoder.training
        assert torch.is_grad_enabled()
    assert [call["training"] for call in models.calls] == [False] * 3
    first = models.calls[0]
    assert (first["seed"], first["steps"], first["guidance"]) == (42, 3, 6.0)
    assert (first["width"], first["height"], first["sampler"]) == (1016, 512, Sampler.DDIM)
    assert not first["negative"].hidden.any()


def test_a_negative_prompt_is_encoded(models: Models) -> None:
    next(models.samples(["a"], negative_prompt="blurry"))
    assert models.calls[0]["negative"].hidden.all()


def test_the_models_are_back_in_training_mode_after_an_error(models: Models) -> None:
    models.images = []
    with pytest.raises(IndexError):
        next(models.samples(["a"]))
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
    assert models.unet.training


@pytest.mark.slow
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
    expected = {"sample_out_of_memory", "validation_out_of_memory"}
    for some, also in ((events, {"base_loss_out_of_memory"}), (more, set())):
        assert {values["code"] for values in of(some, "warning")} == expected | also
        assert not of(some, "sample")
        assert not of(some, "validation")


def test_each_sample_is_drawn_with_its_own_settings_and_says_so(
    training_inputs: Path, tmp_path: Path, home: Home
) -> None:
    """A run whose text encoders are not loaded any more: the negative prompts are cached with the captions."""
    images = make_images(tmp_path / "images", [(64, 64)] * 3)
    lines = ["{trigger}, owl --n blurry --w 128 --h 64 --d 7 --s 2 --l 3.5 --ss euler_a", f"cat --n {'red ' * 200}"]
    job = make_job(
        training_inputs / "base", images, sample_prompts=lines, sample_at_first=True, sample_steps=1, epochs=1
    )
    result, events = train_into(job, tmp_path / "run", home)
    assert "long_prompt" in {values["code"] for values in of(events, "warning")}
    first, second = of(events, "sample")
    settings = {"negative_prompt": "blurry", "seed": 7, "width": 128, "height": 64, "steps": 2}
    settings |= {"guidance": 3.5, "sampler": "euler_a", "step": 0, "epoch": None, "prompt": "inkstamp, owl"}
    assert settings.items() <= first.items()
    assert (second["width"], second["height"], second["seed"], second["sampler"]) == (64, 64, 42, "euler")
    path = result.run / first["path"]
    with Image.open(path) as image:
        assert image.size == (128, 64)
    parameters = read_parameters(path)
    assert parameters is not None
    prompt, negative, line = parameters.split("\n")
    assert (prompt, negative) == ("inkstamp, owl <lora:ink:1>", "Negative prompt: blurry")
    assert line.startswith("Steps: 2, Sampler: Euler a, CFG scale: 3.5, Seed: 7, Size: 128x64, Model hash: ")
    (measured,) = of(events, "sample_measures")
    assert (measured["step"], measured["indices"], measured["images"]) == (0, [0, 1], 3)
    assert result.sample_verdicts == []
    assert measured_steps(result.run) == [0]


def measured_steps(run: Path) -> list[int]:
    """Return the steps of the sample measures in a run's resume state."""
    state = load_state(run / "checkpoints" / "state", on_damage=lambda message: pytest.fail(message))
    assert state is not None
    return [event.step for event in state.progress.sample_measures]


def test_signs_in_the_samples_are_hints_once_and_verdicts_of_the_result(
    training_inputs: Path, tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the third epoch the model cannot be used: the run continues."""

    def measure(self: SampleMeasurer, samples: list[DrawnSample], *, step: int, epoch: int) -> Any:
        assert [(sample.number, sample.prompt) for sample in samples] == [(0, "inkstamp")]
        if epoch == 3:
            raise InputError("It is broken.", "Download it again.", code="feature_model_broken")
        return measures(step, epoch=epoch, nearest_ratio=[0.0, 1.0, 1.0, 1.0])

    monkeypatch.setattr(SampleMeasurer, "measure", measure)
    images = make_images(tmp_path / "images", [(64, 64)])
    job = make_job(training_inputs / "base", images, sample_every_n_epochs=1, sample_steps=1, epochs=3)
    result, events = train_into(job, tmp_path / "run", home)
    assert [values["step"] for values in of(events, "sample_measures")] == [1, 2]
    assert [values["code"] for values in of(events, "hint")].count("copies") == 1
    assert "feature_model_broken" in {values["code"] for values in of(events, "warning")}
    assert [(verdict.code, verdict.step) for verdict in result.sample_verdicts] == [("copies", 2)]


@pytest.mark.slow
def test_samples_on_request_and_before_training_do_not_change_the_training(
    training_inputs: Path, tmp_path: Path, home: Home
) -> None:
    images = make_images(tmp_path / "images", [(64, 64)] * 4)
    plain = make_job(training_inputs / "base", images, epochs=1, text_encoder_lr=1e-4)
    train_into(plain, tmp_path / "plain", home)
    sampled = make_job(
        training_inputs / "base",
        images,
        epochs=1,
        text_encoder_lr=1e-4,
        sample_at_first=True,
        sample_steps=1,
        sample_prompts=["a --n b --ss euler_a", "c"],
    )
    folder = JobFolder(tmp_path / "sampled")

    def ask_before_the_first_step(steps: int) -> bool:
        if steps == 0:
            folder.request_samples()
            folder.request_save()
        return False

    _, events = train_into(sampled, folder.path, home, stop_when=ask_before_the_first_step)
    drawn = [(values["step"], values["epoch"], values["index"]) for values in of(events, "sample")]
    assert drawn == [(0, None, 0), (0, None, 1), (1, None, 0), (1, None, 1)]
    assert not folder.samples_requested() | folder.save_requested()
    saved = [path.name for path in folder.path.glob("checkpoints/*-saved.safetensors")]
    assert saved == ["ink-step00000001-saved.safetensors"]
    assert same(weights_of(folder.path), weights_of(tmp_path / "plain"))
