"""Experiment trackers: what a run logs to them, how they end, and that their failures do no harm."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from PIL import Image

from lora_studio.errors import ConfigError
from lora_studio.events import EpochEvent, NanEvent, SampleEvent, StepEvent, ValidationEvent
from lora_studio.settings.recipe import Recipe
from lora_studio.training.reporting.trackers import tracked, tracker_errors
from lora_studio.workspace.project import Home
from tests.support.events import Events, append_to, of, step_event
from tests.support.training_runs import make_images, make_job, train_into


class FakeTracker(GeneralTracker):
    """Records the calls of accelerate's interface as (method, values, step); `failing` methods raise."""

    name = "trackio"
    requires_logging_directory = False
    calls: ClassVar[list[tuple[str, Any, int | None]]] = []
    failing: ClassVar[set[str]] = set()

    def __init__(self, run_name: str, **options: Any) -> None:
        super().__init__()
        self.record("init", {"project": run_name, **options})

    @property
    def tracker(self) -> FakeTracker:
        return self

    def start(self) -> None:
        self.record("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.record("config", values)

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self.record("log", values, step)

    def finish(self) -> None:
        self.record("finish")

    def record(self, method: str, values: Any = None, step: int | None = None) -> None:
        print("tracker output")
        self.calls.append((method, values, step))
        if method in self.failing:
            raise ConnectionError("no connection")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeTracker]:
    """Register the fake as trackio, as if its package were installed."""
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "trackio", FakeTracker)
    monkeypatch.setattr(tracking, "_available_trackers", ["trackio"])
    monkeypatch.setattr(FakeTracker, "calls", [])
    monkeypatch.setattr(FakeTracker, "failing", set())
    return FakeTracker


RECIPE = Recipe.parse({"log_with": "trackio", "log_tracker_name": "ink", "sample_prompts": ["a", "b"]})


def names_of(fake: type[FakeTracker]) -> list[str]:
    return [method for method, _, _ in fake.calls]


def test_steps_epochs_and_validation_are_logged_at_their_step(
    fake: type[FakeTracker], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events: Events = []
    with tracked(RECIPE, tmp_path / "007-ink", append_to(events), enabled=True) as report:
        report(ValidationEvent(step=0, epoch=0, loss=0.7))
        report(StepEvent(step=1, total=3, epoch=1, loss=0.5, lr=1e-4, gradient_norm=0.25, seconds=None))
        report(NanEvent(step=2, total=3, epoch=1))
        report(step_event(3, loss=0.25, text_encoder_lr=1e-5, scaled_layers=2))
        report(EpochEvent(epoch=1, loss=0.375, unet_norm=2.5))
    assert [name for name, _ in events] == ["validation", "step", "nan", "step", "epoch"]
    assert names_of(fake) == ["init", "start", "config", "log", "log", "log", "log", "finish"]
    assert fake.calls[0][1] == {"project": "ink", "name": "007-ink"}
    settings = fake.calls[2][1]
    assert settings["unet_lr"] == RECIPE.unet_lr
    assert {type(value) for value in settings.values()} <= {bool, int, float, str}
    assert [(values, step) for method, values, step in fake.calls if method == "log"] == [
        ({"loss/validation/epoch_average": 0.7}, 0),
        ({"loss/current": 0.5, "lr/unet": 1e-4, "lr/textencoder": 0.0, "norm/gradient": 0.25}, 1),
        ({"loss/current": 0.25, "lr/unet": 1e-4, "lr/textencoder": 1e-5, "max_norm/keys_scaled": 2}, 3),
        ({"epoch": 1, "loss/epoch_average": 0.375, "norm/unet": 2.5}, 3),
    ]
    assert capsys.readouterr().out == ""  # stdout is for --json


@pytest.mark.parametrize("failing", [{"start"}, {"config"}, {"log"}, {"log", "finish"}], ids=sorted)
def test_a_tracker_that_fails_is_one_warning(fake: type[FakeTracker], failing: set[str], tmp_path: Path) -> None:
    fake.failing.update(failing)
    events: Events = []
    with tracked(RECIPE, tmp_path, append_to(events), enabled=True) as report:
        for step in (1, 2, 3):
            report(step_event(step))
    assert [values["step"] for values in of(events, "step")] == [1, 2, 3]
    (warning,) = of(events, "warning")
    assert warning["code"] == "tracker"
    assert "no connection" in warning["message"]
    assert ("finish" in names_of(fake)) == ("start" not in failing)
    assert names_of(fake).count("log") == (0 if "start" in failing else 3)


@pytest.mark.parametrize(("recipe", "enabled"), [(Recipe(), True), (RECIPE, False)], ids=["not set", "other rank"])
def test_without_a_tracker_events_are_only_reported(
    fake: type[FakeTracker], tmp_path: Path, recipe: Recipe, enabled: bool
) -> None:
    report: Callable[..., None] = append_to([])
    with tracked(recipe, tmp_path, report, enabled=enabled) as same:
        assert same is report
    assert fake.calls == []


@pytest.mark.slow
def test_a_run_logs_each_step_and_finishes_the_tracker_at_a_stop_and_after_an_error(
    fake: type[FakeTracker], training_inputs: Path, tmp_path: Path
) -> None:
    home = Home(training_inputs / "home")
    job = make_job(training_inputs / "base", make_images(tmp_path / "images", [(64, 64)]), epochs=3, log_with="trackio")

    def fail(steps: int) -> bool:
        if steps == 2:
            raise OSError("the folder is gone")
        return False

    train_into(job, tmp_path / "run", home, stop_after=1)
    assert names_of(fake)[-1] == "finish"
    with pytest.raises(OSError, match="gone"):
        train_into(job, tmp_path / "other", home, stop_when=fail)
    assert names_of(fake)[-1] == "finish"
    train_into(job, tmp_path / "run", home, resume=True)
    assert names_of(fake)[-1] == "finish"
    assert names_of(fake).count("finish") == names_of(fake).count("start") == 3
    logged = [step for method, values, step in fake.calls if method == "log" and "loss/current" in values]
    assert logged == [1, 1, 2, 2, 3]


def test_a_package_that_is_missing_is_an_error_with_the_command(
    training_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_available_trackers", [])
    for name in ("tensorboard", "wandb", "trackio"):
        (error,) = tracker_errors(Recipe.parse({"log_with": name}))
        assert f"pip install {name}" in error
    assert tracker_errors(Recipe()) == []
    job = make_job(training_inputs / "base", training_inputs / "images", log_with="wandb")
    with pytest.raises(ConfigError, match="pip install wandb"):
        train_into(job, tmp_path / "run", Home(training_inputs / "home"))


def write_sample(folder: Path, **fields: Any) -> SampleEvent:
    """Write a red image as a sample of the run in `folder`; return its event."""
    file = folder / "samples" / "ink_e000001_01_42.png"
    file.parent.mkdir()
    Image.new("RGB", (16, 8), (255, 0, 0)).save(file)
    name = str(file.relative_to(folder))
    return SampleEvent(**{"step": 4, "epoch": 1, "index": 1, "prompt": "ink, a cat", "seed": 42, "path": name} | fields)


def test_samples_are_logged_with_their_prompts(
    fake: type[FakeTracker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(Image=dict, finish=lambda: None))

    def image_of(path: str, caption: str) -> tuple[tuple[int, int], str]:
        with Image.open(path) as image:
            return image.size, caption

    monkeypatch.setattr(sys.modules["trackio"], "Image", image_of)
    events: Events = []
    sample = write_sample(tmp_path)
    with tracked(RECIPE, tmp_path, append_to(events), enabled=True) as report:
        report(step_event(4))
        report(sample)
        report(sample.model_copy(update={"path": "samples/lost.png"}))
        report(step_event(5))
    assert [name for name, _ in events] == ["step", "sample", "sample", "warning", "step"]
    assert of(events, "warning")[0]["code"] == "tracker"
    logged = [(values, step) for method, values, step in fake.calls if method == "log" and "loss/current" not in values]
    assert logged == [({"samples/01": ((16, 8), "ink, a cat")}, 4)]


def test_tensorboard_gets_values_and_samples_in_the_runs_folder(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events: Events = []
    with tracked(Recipe.parse({"log_with": "tensorboard"}), tmp_path, append_to(events), enabled=True) as report:
        report(step_event(4))
        report(ValidationEvent(step=4, epoch=1, loss=0.75))
        report(write_sample(tmp_path))
    assert of(events, "warning") == []
    (file,) = (path for path in (tmp_path / "logs").rglob("events.out.tfevents.*") if path.parent.name == "lora-studio")
    found = accumulators.EventAccumulator(str(file), size_guidance=accumulators.STORE_EVERYTHING_SIZE_GUIDANCE)
    found.Reload()
    (loss,) = found.Scalars("loss/validation/epoch_average")
    assert (loss.step, loss.value) == (4, 0.75)
    (image,) = found.Images("samples/01")
    (text,) = found.Tensors("samples/01/text_summary")
    assert (image.step, image.width, image.height, text.step) == (4, 16, 8, 4)
    with Image.open(io.BytesIO(image.encoded_image_string)) as decoded:
        assert decoded.convert("RGB").getpixel((3, 3)) == (255, 0, 0)
    assert text.tensor_proto.string_val == [b"ink, a cat"]
