"""The loop on the small SDXL in fp32: what a step computes, resuming, seeds, and runs that break."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_studio.config import TrainJob
from lora_studio.errors import DiskFullError, NonFiniteLossError
from lora_studio.project import Home
from lora_studio.training import checkpoints, loop
from lora_studio.training.cache import TextCache
from lora_studio.training.loop import batch_losses, train_step
from lora_studio.training.objective import draw_latent, draw_noise, draw_timestep
from tests.training_runs import make_images, make_job, of, same, start, train_into, weights_of


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a cache that the tests share."""
    folder = tmp_path_factory.mktemp("shared")
    make_images(folder / "images", [(64, 64), (64, 32), (64, 64), (32, 64), (64, 64)])
    return folder


@pytest.fixture
def both(tiny_base: Path, shared: Path) -> TrainJob:
    """A job that trains the UNet and both text encoders: 2 epochs of 4 steps, in 3 buckets."""
    return make_job(tiny_base, shared / "images", text_encoder_lr=5e-4, noise_offset=0.05)


@pytest.fixture(scope="module")
def whole(tiny_base: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same job, done without a stop."""
    folder = tmp_path_factory.mktemp("whole")
    job = make_job(tiny_base, shared / "images", text_encoder_lr=5e-4, noise_offset=0.05)
    result, events = train_into(job, folder, Home(shared / "home"))
    assert (result.steps, result.epochs, result.stopped) == (8, 2, False)
    assert [values["step"] for values in of(events, "step")] == list(range(1, 9))
    return folder


def test_a_resumed_run_ends_with_the_same_bits(both: TrainJob, whole: Path, shared: Path, tmp_path: Path) -> None:
    home = Home(shared / "home")
    first, events = train_into(both, tmp_path, home, stop_after=3)
    assert (first.stopped, first.lora, first.steps) == (True, None, 3)
    second, more = train_into(both, tmp_path, home, stop_after=4, resume=True)  # at the end of an epoch
    assert [values["step"] for values in of(more, "resume") + of(more, "step")] == [3, 4]
    last, rest = train_into(both, tmp_path, home, resume=True)
    assert [values["step"] for values in of(rest, "step")] == [5, 6, 7, 8]
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


def test_the_same_seed_gives_the_same_bits_and_another_others(
    both: TrainJob, whole: Path, shared: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1234)
    job = both.model_copy(update={"name": "other name"})
    job.recipe.sample_every_n_epochs = 1  # drawing must not disturb
    job.recipe.sample_steps = 1
    result, events = train_into(job, tmp_path / "again", Home(shared / "home"))
    assert len(of(events, "sample")) == 2
    assert same(weights_of(tmp_path / "again"), weights_of(whole))
    assert result.lora is not None
    job.recipe.seed = 43
    job.recipe.max_train_steps = 1
    train_into(job, tmp_path / "other", Home(shared / "home"))
    assert not same(weights_of(tmp_path / "other"), weights_of(whole))


def test_text_embeddings_are_cached_only_if_text_encoders_are_frozen(
    tiny_base: Path, shared: Path, tmp_path: Path
) -> None:
    frozen = start(make_job(tiny_base, shared / "images"), tmp_path / "a", Home(tmp_path / "home"))
    assert isinstance(frozen.texts, TextCache)
    assert frozen.base.text_encoders == []
    assert set(frozen.adapters.models) == {"unet"}
    assert len(list((tmp_path / "home" / "cache" / "text").rglob("*.safetensors"))) == 6  # captions and the prompt
    job = make_job(tiny_base, shared / "images", text_encoder_lr=1e-3)
    trained = start(job, tmp_path / "b", Home(tmp_path / "other home"))
    assert trained.texts is None
    assert set(trained.adapters.models) == {"unet", "te1", "te2"}
    assert not (tmp_path / "other home" / "cache" / "text").exists()
    before = trained.encode(["inkstamp"]).hidden.detach().clone()
    for _ in range(2):
        train_step(trained)
        trained.step += 1
    assert not torch.equal(trained.encode(["inkstamp"]).hidden, before)


class Recorder(torch.nn.Module):
    """A UNet that answers zeros and keeps what it was given."""

    dtype = torch.float32

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, **given: Any) -> tuple[torch.Tensor]:
        self.given = {"noisy": noisy, "t": t, **given}
        return (torch.zeros_like(noisy),)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_loss_is_the_weighted_error_of_what_the_unet_answers(
    tiny_base: Path, shared: Path, tmp_path: Path, kind: str
) -> None:
    job = make_job(tiny_base, shared / "images", noise_offset=0.1, min_snr_gamma=3.0)
    run = start(job, tmp_path, Home(shared / "home"))
    run.base.prediction_type = kind
    run.base.unet = unet = Recorder()  # type: ignore[assignment]
    run.step = 5
    batch = [item for item in run.dataset.items if item.size == (64, 64)][:2]
    losses = batch_losses(run, batch, 0)
    for index, item in enumerate(batch):
        key = (42, 5, index)
        t = draw_timestep(*key, 1000)
        assert int(unet.given["t"][index]) == t
        mean, logvar = run.latents.load(item)
        clean = draw_latent(mean, logvar, *key) * 0.13025
        noise = draw_noise((4, 8, 8), *key, 0.1)
        a = float(run.base.noise_scheduler.alphas_cumprod[t])
        assert torch.allclose(unet.given["noisy"][index], a**0.5 * clean + (1 - a) ** 0.5 * noise, atol=1e-5)
        assert unet.given["added_cond_kwargs"]["time_ids"][index].tolist() == [64, 64, 0, 0, 64, 64]
        snr = a / (1 - a)
        if kind == "epsilon":
            expected = (noise**2).mean() * min(snr, 3) / snr
        else:
            expected = ((a**0.5 * noise - (1 - a) ** 0.5 * clean) ** 2).mean() * min(snr, 3) / (snr + 1)
        assert float(losses[index]) == pytest.approx(float(expected), rel=1e-4)
    text = run.encode([item.caption for item in batch])
    assert torch.equal(unet.given["encoder_hidden_states"], text.hidden)
    assert torch.equal(unet.given["added_cond_kwargs"]["text_embeds"], text.pooled)


def test_every_sample_counts_the_same_however_a_step_is_cut(tiny_base: Path, shared: Path, tmp_path: Path) -> None:
    """Gradients of one batch of three, and of a batch of one and one of two."""
    run = start(make_job(tiny_base, shared / "images"), tmp_path, Home(shared / "home"))
    square = [item for item in run.dataset.items if item.size == (64, 64)]
    found = []
    for cut in ([square], [square[:1], square[1:]]):
        run.order = (0, [cut])
        run.optimizer.step = lambda: found.append([weight.grad.clone() for weight in run.parameters])  # type: ignore[method-assign, assignment]
        found.append(train_step(run))
    (one, one_loss), (two, two_loss) = (found[0], found[1]), (found[2], found[3])
    assert one_loss == pytest.approx(two_loss, rel=1e-5)
    assert any(gradient.any() for gradient in one)
    for first, second in zip(one, two, strict=True):
        assert torch.allclose(first, second, atol=1e-6, rtol=1e-3)


def test_gradients_are_clipped_to_the_norm_that_was_set(tiny_base: Path, shared: Path, tmp_path: Path) -> None:
    norms = {}
    for limit in (0.0, 1e-3):
        run = start(
            make_job(tiny_base, shared / "images", max_grad_norm=limit), tmp_path / str(limit), Home(shared / "home")
        )

        def measure(run: Any = run, limit: float = limit) -> None:
            norms[limit] = float(torch.cat([weight.grad.flatten() for weight in run.parameters]).norm())

        run.optimizer.step = measure  # type: ignore[method-assign, assignment]
        train_step(run)
    assert norms[0.0] > 2e-3
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-2)


def poison(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    real = loop.batch_losses

    def losses(run: Any, batch: Any, first: int) -> torch.Tensor:
        return real(run, batch, first) * (float("nan") if run.step in steps else 1)

    monkeypatch.setattr(loop, "batch_losses", losses)


def test_a_single_bad_step_is_left_out(
    tiny_base: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, range(1, 2))
    result, events = train_into(make_job(tiny_base, shared / "images", epochs=1), tmp_path, Home(shared / "home"))
    assert [values["step"] for values in of(events, "nan")] == [2]
    assert [values["step"] for values in of(events, "step")] == [1, 3, 4]
    assert result.lora is not None
    assert all(weight.isfinite().all() for weight in load_file(result.lora).values())


def test_a_broken_run_stops_and_keeps_its_last_good_checkpoint(
    tiny_base: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, range(5, 100))
    job = make_job(tiny_base, shared / "images", epochs=5)
    with pytest.raises(NonFiniteLossError, match=r"ink-000002\.safetensors, is kept") as caught:
        train_into(job, tmp_path, Home(shared / "home"))
    assert "unet_lr" in caught.value.remedy
    assert not (tmp_path / "ink.safetensors").exists()
    for file in (tmp_path / "checkpoints").glob("*.safetensors"):
        assert all(weight.isfinite().all() for weight in load_file(file).values())
    assert all(weight.isfinite().all() for weight in weights_of(tmp_path).values())


def test_weights_that_are_not_numbers_are_never_written(
    tiny_base: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.train_step

    def step(run: Any) -> float | None:
        loss = real(run)
        with torch.no_grad():
            run.parameters[0].fill_(float("inf"))
        return loss

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(NonFiniteLossError, match="No checkpoint had been made yet"):
        train_into(make_job(tiny_base, shared / "images"), tmp_path, Home(shared / "home"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_full_disk_leaves_what_was_saved_before(
    both: TrainJob, whole: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room for the second epoch's state: the first one's is whole, and the run goes on from it to the same end."""
    real = checkpoints._write
    full = True

    def write(path: Path, content: bytes) -> None:
        if full and path.parent.name.startswith("00000008"):
            path.write_bytes(content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(checkpoints, "_write", write)
    with pytest.raises(DiskFullError, match="No room left"):
        train_into(both, tmp_path, Home(shared / "home"))
    assert not (tmp_path / "ink.safetensors").exists()
    assert not list(tmp_path.rglob("*.partial"))
    full = False
    train_into(both, tmp_path, Home(shared / "home"), resume=True)
    assert same(load_file(tmp_path / "ink.safetensors"), load_file(whole / "ink.safetensors"))


def test_a_damaged_state_gives_way_to_the_one_before(both: TrainJob, whole: Path, shared: Path, tmp_path: Path) -> None:
    train_into(both, tmp_path, Home(shared / "home"), stop_after=6)
    newest = max((tmp_path / "checkpoints" / "state").iterdir())
    content = bytearray((newest / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (newest / "optimizer.pt").write_bytes(content)
    _, events = train_into(both, tmp_path, Home(shared / "home"), resume=True)
    assert of(events, "warning")[0]["code"] == "state_damaged"
    assert of(events, "resume") == [{"step": 4}]
    assert same(load_file(tmp_path / "ink.safetensors"), load_file(whole / "ink.safetensors"))


def test_a_state_of_another_recipe_is_refused(both: TrainJob, shared: Path, tmp_path: Path) -> None:
    from lora_studio.errors import InputError

    train_into(both, tmp_path, Home(shared / "home"), stop_after=1)
    both.recipe.network_dim = 8
    with pytest.raises(InputError, match="does not fit the recipe") as caught:
        train_into(both, tmp_path, Home(shared / "home"), resume=True)
    assert caught.value.code == "resume_mismatch"


def test_checkpoints_are_made_and_kept_as_set(tiny_base: Path, shared: Path, tmp_path: Path) -> None:
    job = make_job(
        tiny_base,
        shared / "images",
        epochs=5,
        batch_size=8,
        save_every_n_epochs=2,
        keep_checkpoints=2,
        max_train_steps=13,
    )
    _, events = train_into(job, tmp_path, Home(shared / "home"))
    assert [(values["epoch"], values["step"]) for values in of(events, "checkpoint")] == [(2, 6), (4, 12), (5, 13)]
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.safetensors"))
    assert kept == ["ink-000004.safetensors", "ink-000005.safetensors"]
