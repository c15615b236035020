"""The training loop on the small SDXL in fp32: losses, resuming, seeds, checkpoints, and runs that fail."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lora_studio.errors import InputError, NonFiniteLossError
from lora_studio.events import CheckpointEvent, Event, NanEvent, StepEvent
from lora_studio.lora.header import read_lora_header
from lora_studio.models.load import make_noise_scheduler
from lora_studio.settings.job_specs import TrainJob
from lora_studio.training import build
from lora_studio.training.batch_loss import BatchLoss
from lora_studio.training.data.cache import TextCache
from lora_studio.training.data.prefetch import PREFETCH_DEPTH
from lora_studio.training.lora_file import save_lora_file
from lora_studio.training.objective import draw_latent, draw_noise, draw_timestep
from lora_studio.training.outputs import Outputs
from lora_studio.training.progress import Progress
from lora_studio.training.resume import restore_state
from lora_studio.training.resume_state import load_state
from lora_studio.training.samples import encode_prompt
from lora_studio.training.step import train_step
from lora_studio.training.train import train
from lora_studio.training.trainer import Trainer
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.events import ignore, of
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import losses_of, make_images, make_job, same, start, train_into, weights_of


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and caches that the tests share."""
    folder = tmp_path_factory.mktemp("shared")
    make_images(folder / "images", [(64, 64), (32, 64), (64, 64)])
    return folder


@pytest.fixture(scope="module")
def base(shared: Path) -> Path:
    return save_tiny_sdxl(shared / "base", layers=1)


@pytest.fixture(scope="module")
def prepared(base: Path, shared: Path) -> Trainer:
    job = make_job(base, shared / "images", noise_offset=0.1, min_snr_gamma=3.0)
    return start(job, shared / "run", Home(shared / "home"))


@pytest.fixture
def trainer(prepared: Trainer) -> Iterator[Trainer]:
    """A run that trains the UNet only, before its first step; changes of a test are undone."""
    weights = {name: weight.clone() for name, weight in prepared.adapters.state().items()}
    recipe = prepared.recipe.model_dump()
    before = copy.copy(prepared.collator), prepared.base.unet
    yield prepared
    prepared.collator.__dict__.update(before[0].__dict__)
    prepared.base.unet = before[1]
    for name, value in recipe.items():
        setattr(prepared.recipe, name, value)
    prepared.adapters.load_state(weights)


@pytest.fixture
def both(base: Path, shared: Path) -> TrainJob:
    """A job that trains the UNet and both text encoders: 2 epochs of 2 steps, in 2 buckets."""
    return make_job(base, shared / "images", text_encoder_lr=5e-4, noise_offset=0.05)


@pytest.fixture(scope="module")
def whole(base: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same job, trained without a stop."""
    folder = tmp_path_factory.mktemp("whole")
    job = make_job(base, shared / "images", text_encoder_lr=5e-4, noise_offset=0.05)
    result, events = train_into(job, folder, Home(shared / "home"))
    assert (result.steps, result.epochs, result.stopped) == (4, 2, False)
    assert [values["step"] for values in of(events, "step")] == [1, 2, 3, 4]
    return folder


@pytest.mark.parametrize("depth", [0, PREFETCH_DEPTH], ids=["on demand", "prefetched"])
def test_a_resumed_run_is_bit_exact(
    both: TrainJob, whole: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    monkeypatch.setattr(build, "prefetch_depth", lambda device: depth)
    home = Home(shared / "home")
    first, before = train_into(both, tmp_path, home, stop_after=3)
    assert (first.stopped, first.lora, first.steps) == (True, None, 3)
    assert of(before, "checkpoint")[-1] == {
        "step": 3,
        "epoch": None,
        "path": "checkpoints/ink-step00000003.safetensors",
    }
    last, events = train_into(both, tmp_path, home, resume=True)
    assert of(events, "resume") == [{"step": 3}]
    assert [values["step"] for values in of(events, "step")] == [4]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    assert not last.stopped
    assert last.lora is not None
    for file in ("ink.safetensors", "checkpoints/ink-000001.safetensors"):
        assert same(load_file(tmp_path / file), load_file(whole / file))
    assert same(weights_of(tmp_path), weights_of(whole))
    uninterrupted = weights_of(whole)
    assert {name.split("/")[0] for name in uninterrupted} == {"unet", "te1", "te2"}
    for prefix in ("unet", "te1", "te2"):
        assert any(
            weight.any() for name, weight in uninterrupted.items() if name.startswith(prefix) and name[-1] == "B"
        )


@pytest.mark.slow
def test_text_encoders_stop_at_their_step_also_after_a_resume(both: TrainJob, shared: Path, tmp_path: Path) -> None:
    both.recipe.stop_text_encoder_training = 0.5  # of 4 steps
    home = Home(shared / "home")
    _, events = train_into(both, tmp_path / "whole", home)
    assert [bool(values["text_encoder_lr"]) for values in of(events, "step")] == [True, True, False, False]
    assert all(values["lr"] for values in of(events, "step")[:-1])
    train_into(both, tmp_path / "parts", home, stop_after=2)
    stopped = weights_of(tmp_path / "parts")
    train_into(both, tmp_path / "parts", home, resume=True)
    whole = weights_of(tmp_path / "whole")
    assert same(weights_of(tmp_path / "parts"), whole)
    changed = {name.split("/")[0] for name, weight in whole.items() if not torch.equal(weight, stopped[name])}
    assert changed == {"unet"}
    assert any(weight.any() for name, weight in whole.items() if name.startswith("te") and name.endswith("/B"))


def test_text_encoders_that_are_not_trained_do_not_stop(trainer: Trainer) -> None:
    trainer.recipe.stop_text_encoder_training = 1
    assert trainer.text_encoder_stop == trainer.counts.total_steps


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "AdamWScheduleFree", "lr_scheduler": "constant", "debiased_estimation_loss": True},
        {"ema_decay": 0.5, "lr_scheduler": "rex", "loss_type": "huber", "multires_noise_iterations": 6},
    ],
    ids=["schedule-free", "ema"],
)
def test_averaged_weights_are_resumed_and_saved_in_the_lora(
    base: Path, shared: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """A stop within an epoch changes no bit. LoRA files have the averaged weights, states the trained ones."""
    job = make_job(base, shared / "images", **changes)
    home = Home(shared / "home")
    _, events = train_into(job, tmp_path / "whole", home)
    train_into(job, tmp_path / "parts", home, stop_after=1)
    _, rest = train_into(job, tmp_path / "parts", home, resume=True)
    lora = {folder: load_file(tmp_path / folder / "ink.safetensors") for folder in ("whole", "parts")}
    assert same(lora["whole"], lora["parts"])
    trained = weights_of(tmp_path / "whole")
    assert same(trained, weights_of(tmp_path / "parts"))
    plain = sorted(float(weight.square().sum()) for name, weight in trained.items() if name.endswith("/B"))
    given = sorted(float(weight.square().sum()) for name, weight in lora["whole"].items() if "lora_up" in name)
    assert len(plain) == len(given)
    assert plain != given
    assert of(rest, "timesteps") == of(events, "timesteps")


@pytest.mark.slow
@pytest.mark.parametrize(("stop_after", "position"), [(1, "step00000001"), (2, "step00000002")])
def test_a_stop_saves_a_checkpoint_that_a_resume_keeps(
    base: Path, shared: Path, tmp_path: Path, stop_after: int, position: str
) -> None:
    """Also after a step that ends an epoch, if that epoch is not saved."""
    job = make_job(base, shared / "images", save_every_n_epochs=5)
    home, folder = Home(shared / "home"), JobFolder.create(tmp_path / "run", job)
    path = f"checkpoints/ink-{position}.safetensors"

    def steps() -> int:
        return sum(isinstance(event, StepEvent) for event in folder.events()[0])

    train(job, folder, home=home, report=folder.emit, should_stop=lambda: steps() >= stop_after)
    assert read_lora_header(folder.path / path).trigger_word == "inkstamp"
    train(job, folder, home=home, report=folder.emit, should_stop=lambda: False, resume=True)
    saved = [event.path for event in folder.events()[0] if isinstance(event, CheckpointEvent)]
    assert saved == [path, "checkpoints/ink-000002.safetensors"]


def test_losses_by_timestep_average_to_the_epoch_loss(base: Path, shared: Path, tmp_path: Path) -> None:
    job = make_job(base, shared / "images", batch_size=1, min_timestep=200, max_timestep=500)
    _, events = train_into(job, tmp_path, Home(shared / "home"))
    found = of(events, "timesteps")
    assert [values["epoch"] for values in found] == [1, 2]
    for values, epoch in zip(found, of(events, "epoch"), strict=True):
        filled = [index for index, count in enumerate(values["count"]) if count]
        assert set(filled) <= {2, 3, 4}
        assert sum(values["count"]) == 3
        assert [mean is not None for mean in values["loss"]] == [index in filled for index in range(10)]
        total = sum(values["loss"][index] * values["count"][index] for index in filled)
        assert total / 3 == pytest.approx(epoch["loss"], rel=1e-5)


@pytest.mark.slow
def test_equal_seeds_give_equal_bits(both: TrainJob, whole: Path, shared: Path, tmp_path: Path) -> None:
    """Neither torch's global seed, nor the LoRA's name, nor sampling changes anything."""
    torch.manual_seed(1234)
    both.name = "other name"
    both.recipe.sample_every_n_epochs = 99  # the last epoch is sampled in any case
    both.recipe.sample_steps = 1
    result, events = train_into(both, tmp_path, Home(shared / "home"))
    assert [(values["epoch"], values["prompt"]) for values in of(events, "sample")] == [(2, "inkstamp")]
    with Image.open(tmp_path / of(events, "sample")[0]["path"]) as sample:
        assert sample.size == (64, 64)
    assert same(weights_of(tmp_path), weights_of(whole))
    assert result.lora == tmp_path / "other name.safetensors"


def test_text_embeddings_are_cached_only_if_text_encoders_are_frozen(
    trainer: Trainer, base: Path, shared: Path, tmp_path: Path
) -> None:
    assert isinstance(trainer.collator.texts, TextCache)
    assert trainer.base.text_encoders == []
    assert set(trainer.adapters.models) == {"unet"}
    assert len(list((shared / "home" / "cache" / "text").rglob("*.safetensors"))) == 4  # captions and the prompt
    job = make_job(base, shared / "images", text_encoder_lr=1e-3)
    trained = start(job, tmp_path / "b", Home(tmp_path / "other home"))
    assert trained.collator.texts is None
    assert set(trained.adapters.models) == {"unet", "te1", "te2"}
    assert not (tmp_path / "other home" / "cache" / "text").exists()
    before = encode_prompt("inkstamp", trained).hidden.detach().clone()
    for step in range(2):
        train_step(trained, step)
    assert not torch.equal(encode_prompt("inkstamp", trained).hidden, before)


class ZeroUNet(torch.nn.Module):
    """A UNet that predicts zeros and records its inputs."""

    dtype = torch.float32

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, **given: Any) -> tuple[torch.Tensor]:
        self.given = {"noisy": noisy, "t": t, **given}
        return (torch.zeros_like(noisy),)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_is_the_weighted_error_of_the_prediction(trainer: Trainer, kind: str) -> None:
    trainer.collator.__dict__.pop("loss_weights", None)
    trainer.collator.prediction_type = kind
    trainer.base.unet = unet = ZeroUNet()  # type: ignore[assignment]
    batch = [item for item in trainer.dataset.items if item.size == (64, 64)][:2]
    losses = losses_of(trainer, batch, step=5)
    for index, item in enumerate(batch):
        key = (42, 5, index)
        t = draw_timestep(*key, 1000)
        assert int(unet.given["t"][index]) == t
        mean, logvar = trainer.collator.latents.load(item)
        clean = draw_latent(mean, logvar, *key) * 0.13025
        noise = draw_noise((4, 8, 8), *key, 0.1)
        a = float(trainer.collator.noise_scheduler.alphas_cumprod[t])
        assert torch.allclose(unet.given["noisy"][index], a**0.5 * clean + (1 - a) ** 0.5 * noise, atol=1e-5)
        assert unet.given["added_cond_kwargs"]["time_ids"][index].tolist() == [64, 64, 0, 0, 64, 64]
        snr = a / (1 - a)
        if kind == "epsilon":
            expected = (noise**2).mean() * min(snr, 3) / snr
        else:
            expected = ((a**0.5 * noise - (1 - a) ** 0.5 * clean) ** 2).mean() * min(snr, 3) / (snr + 1)
        assert float(losses[index]) == pytest.approx(float(expected), rel=1e-4)
    texts = [encode_prompt(item.caption, trainer) for item in batch]
    assert torch.equal(unet.given["encoder_hidden_states"], torch.cat([text.hidden for text in texts]))
    assert torch.equal(unet.given["added_cond_kwargs"]["text_embeds"], torch.cat([text.pooled for text in texts]))


def test_at_zero_terminal_snr_the_last_timestep_is_pure_noise_and_its_target_the_image(trainer: Trainer) -> None:
    """At SNR 0 the input is the noise, and v is minus the clean latents."""
    trainer.collator.__dict__.pop("loss_weights", None)
    trainer.collator.prediction_type = "v_prediction"
    trainer.collator.noise_scheduler = make_noise_scheduler({}, "v_prediction", True)
    trainer.base.unet = unet = ZeroUNet()  # type: ignore[assignment]
    trainer.job.recipe.min_timestep = 999
    trainer.job.recipe.min_snr_gamma = 0
    batch = [item for item in trainer.dataset.items if item.size == (64, 64)][:2]
    losses = losses_of(trainer, batch)
    trainer.collator.__dict__.pop("loss_weights")
    assert unet.given["t"].tolist() == [999, 999]
    for index, item in enumerate(batch):
        clean = draw_latent(*trainer.collator.latents.load(item), 42, 0, index) * 0.13025
        assert torch.allclose(unet.given["noisy"][index], draw_noise((4, 8, 8), 42, 0, index, 0.1), atol=1e-4)
        assert float(losses[index]) == pytest.approx(float(clean.square().mean()), rel=1e-2)


def test_every_sample_has_the_same_weight_in_any_batch(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of one batch of four equal those of a batch of one and a batch of three."""
    gradients: list[torch.Tensor] = []
    hook = trainer.optimizer.register_step_pre_hook(lambda *step: gradients.append(gradient_of(trainer)))
    weights = {name: weight.clone() for name, weight in trainer.adapters.state().items()}
    items = [item for item in trainer.dataset.items if item.size == (64, 64)] * 2
    losses = []
    for cut in ([items], [items[:1], items[1:]]):
        trainer.adapters.load_state(weights)
        monkeypatch.setattr(trainer.collator, "batches", lambda step, cut=cut: cut)
        losses.append(train_step(trainer, 0).read())
    hook.remove()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert gradients[0].any()
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6, rtol=1e-3)


def gradient_of(trainer: Trainer) -> torch.Tensor:
    return torch.cat(trainer.weights.gradients)


def test_gradients_are_clipped_to_max_grad_norm(trainer: Trainer) -> None:
    norms: list[float] = []
    hook = trainer.optimizer.register_step_pre_hook(lambda *step: norms.append(float(gradient_of(trainer).norm())))
    weights = {name: weight.clone() for name, weight in trainer.adapters.state().items()}
    for limit in (0, 1e-3):
        trainer.adapters.load_state(weights)
        trainer.job.recipe.max_grad_norm = limit
        train_step(trainer, 0)
    hook.remove()
    assert norms[0] > 2e-3
    assert norms[1] == pytest.approx(1e-3, rel=1e-2)


def test_repeated_nan_ends_the_run_and_keeps_the_last_good_checkpoint(
    base: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first loss is NaN, which is skipped; then all from the fourth step on, which ends the run."""
    real, steps = BatchLoss.__call__, itertools.count()

    def losses(batch_loss: BatchLoss, batch: Any) -> torch.Tensor:
        found = real(batch_loss, batch)
        return found * float("nan") if torch.is_grad_enabled() and next(steps) not in (1, 2) else found

    monkeypatch.setattr(BatchLoss, "__call__", losses)
    seen: list[tuple[str, int]] = []

    def report(event: Event) -> None:
        if isinstance(event, NanEvent | StepEvent):
            seen.append((event.name, event.step))

    with pytest.raises(NonFiniteLossError) as caught:
        train(
            make_job(base, shared / "images", epochs=9),
            JobFolder(tmp_path),
            home=Home(shared / "home"),
            report=report,
            should_stop=lambda: False,
        )
    bad = [("nan", step) for step in range(4, 9)]
    assert seen == [("nan", 1), ("step", 2), ("step", 3), *bad]
    assert caught.value.code == "nan"
    assert "step 8" in caught.value.message
    assert "ink-000003.safetensors" in caught.value.message
    assert "unet_lr" in caught.value.remedy
    assert not (tmp_path / "ink.safetensors").exists()
    files = sorted((tmp_path / "checkpoints").glob("*.safetensors"))
    assert files[-1].name == "ink-000003.safetensors"
    for file in files:
        assert all(weight.isfinite().all() for weight in load_file(file).values())
    assert all(weight.isfinite().all() for weight in weights_of(tmp_path).values())


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_every_other_step_ends_the_run(
    base: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = BatchLoss.__call__, itertools.count()

    def losses(batch_loss: BatchLoss, batch: Any) -> torch.Tensor:
        return real(batch_loss, batch) * (float("nan") if next(steps) % 2 else 1)

    monkeypatch.setattr(BatchLoss, "__call__", losses)
    images = make_images(tmp_path / "images", [(64, 64)])
    job = make_job(base, images, epochs=40, save_every_n_epochs=40, unet_lr=0.1)
    with pytest.raises(NonFiniteLossError) as caught:
        train_into(job, tmp_path / "run", Home(shared / "home"))
    assert caught.value.code == "nan"
    assert "step 20" in caught.value.message
    assert "unet_lr to 0.0005" in caught.value.remedy  # the guide's: half of 0.1 is too high as well


def test_non_finite_weights_are_never_written(trainer: Trainer, tmp_path: Path) -> None:
    trainer = replace(trainer, folder=tmp_path)
    with torch.no_grad():
        trainer.weights.flat[0].fill_(float("inf"))
    with pytest.raises(NonFiniteLossError):
        save_lora_file(trainer, Progress(), tmp_path / "x.safetensors", 1)
    with pytest.raises(NonFiniteLossError):
        Outputs(trainer, Progress(), ignore, should_stop=lambda: False).save_state()
    assert not list(tmp_path.rglob("*"))


def test_a_resume_state_of_another_recipe_is_an_error(trainer: Trainer, whole: Path) -> None:
    state = load_state(whole / "checkpoints" / "state", on_damage=print)
    assert state is not None
    with pytest.raises(InputError) as caught:
        restore_state(trainer, state)
    assert caught.value.code == "resume_mismatch"


def test_checkpoints_are_saved_and_deleted_as_set(base: Path, shared: Path, tmp_path: Path) -> None:
    job = make_job(base, shared / "images", epochs=9, save_every_n_epochs=2, keep_checkpoints=1, max_train_steps=5)
    _, events = train_into(job, tmp_path, Home(shared / "home"))
    assert [(values["epoch"], values["step"]) for values in of(events, "checkpoint")] == [(2, 4), (3, 5)]
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.safetensors")] == ["ink-000003.safetensors"]


@pytest.mark.slow
def test_samples_and_checkpoints_within_epochs(base: Path, shared: Path, tmp_path: Path) -> None:
    """Three epochs of 2 steps, cut short at 5: a checkpoint every 3 steps and every 2 epochs, a sample every step."""
    images = make_images(tmp_path / "images", [(64, 64)] * 4)
    job = make_job(
        base,
        images,
        epochs=3,
        max_train_steps=5,
        save_every_n_epochs=2,
        save_every_n_steps=3,
        keep_checkpoints=2,
        sample_every_n_steps=1,
        sample_steps=1,
    )
    _, events = train_into(job, tmp_path / "run", Home(shared / "home"))
    saved = [(values["step"], values["epoch"]) for values in of(events, "checkpoint")]
    assert saved == [(3, None), (4, 2), (5, 3)]
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("*.safetensors"))
    assert kept == ["ink-000002.safetensors", "ink-000003.safetensors"]
    samples = [(values["step"], values["epoch"], Path(values["path"]).name) for values in of(events, "sample")]
    assert samples == [
        (1, None, "ink_00000001_00_42.png"),
        (2, 1, "ink_e000001_00_42.png"),
        (3, None, "ink_00000003_00_42.png"),
        (4, 2, "ink_e000002_00_42.png"),
        (5, 3, "ink_e000003_00_42.png"),
    ]
    assert all((tmp_path / "run" / "samples" / name).is_file() for _, _, name in samples)
