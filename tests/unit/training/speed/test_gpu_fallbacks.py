"""A new GPU is tested once; what it computes wrongly is not used on it, and that is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_studio.settings.choices import BasePrecision, GradientCheckpointing
from lora_studio.training import train as train_module
from lora_studio.training.build import build_trainer
from lora_studio.training.preflight import preflight
from lora_studio.training.reporting.startup import PhaseReporter
from lora_studio.training.speed import gpu_fallbacks
from lora_studio.training.speed.gpu_fallbacks import FILE, failures_of, known_failures, plain_recipe
from lora_studio.training.speed.self_test import Comparison, FastPath
from lora_studio.training.step import train_step
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.events import Events, append_to, ignore, of
from tests.support.training_runs import make_images, make_job, recipe_of

CUDA, BF16 = torch.device("cuda"), torch.bfloat16


class Gpu:
    """A GPU whose self-test is a double: the paths in `wrong` fail, and the one in `fatal` ends the process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name = "RTX 3060"
        self.wrong: set[FastPath] = set()
        self.fatal: FastPath | None = None
        self.tested: list[FastPath] = []
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: self.name)
        monkeypatch.setattr(gpu_fallbacks, "self_test", self.self_test)

    def self_test(self, device: Any, dtype: Any, *, paths: Sequence[FastPath]) -> Iterator[Comparison]:
        for path in paths:
            self.tested.append(path)
            if path is self.fatal:
                raise SystemExit
            if path is not FastPath.CUDA_GRAPHS:
                difference = 1.0 if path in self.wrong else 0.0
                yield Comparison(path=path, difference=difference, tolerance=0.1, seconds=1, plain_seconds=2)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def test_a_gpu_is_tested_once_and_each_run_warns_of_what_failed(gpu: Gpu, home: Home) -> None:
    gpu.wrong = {FastPath.FUSED_LAYERS, FastPath.NF4}
    for times in range(2):
        events = Events()
        assert failures_of(CUDA, BF16, home, append_to(events)) == gpu.wrong
        assert gpu.tested == list(FastPath)
        assert len(of(events, "phase")) == (times == 0)
        warnings = of(events, "warning")
        assert [warning["code"] for warning in warnings] == ["self_test"] * 2
        assert FastPath.FUSED_LAYERS.fallback in warnings[0]["message"]
    assert known_failures(CUDA, BF16, home) == gpu.wrong


def test_another_gpu_precision_or_pytorch_is_tested_again(
    gpu: Gpu, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    for change in (lambda: None, lambda: setattr(gpu, "name", "RTX 4090")):
        change()
        gpu.tested.clear()
        failures_of(CUDA, BF16, home, ignore)
        assert gpu.tested == list(FastPath)
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert known_failures(CUDA, BF16, home) == frozenset()
    failures_of(CUDA, BF16, home, ignore)
    failures_of(CUDA, torch.float16, home, ignore)
    assert gpu.tested == list(FastPath) * 3


def test_a_path_that_ended_the_process_has_failed(gpu: Gpu, home: Home) -> None:
    gpu.fatal = FastPath.INT8
    with pytest.raises(SystemExit):
        failures_of(CUDA, BF16, home, ignore)
    assert failures_of(CUDA, BF16, home, ignore) == {FastPath.INT8}
    assert gpu.tested == list(FastPath)  # those before are not tested again, and it is not tried again


def test_a_cpu_is_not_tested_and_a_damaged_file_is_written_anew(gpu: Gpu, home: Home) -> None:
    assert failures_of(torch.device("cpu"), torch.float32, home, ignore) == frozenset()
    assert not gpu.tested
    assert not home.path.exists()
    home.path.mkdir(parents=True)
    for content in ("{", "[]", '{"a": 1}'):
        (home.path / FILE).write_text(content)
        assert known_failures(CUDA, BF16, home) == frozenset()
    gpu.wrong = {FastPath.INT8}
    failures_of(CUDA, BF16, home, ignore)
    assert known_failures(CUDA, BF16, home) == {FastPath.INT8}


def test_settings_with_a_fallback_are_changed_and_others_are_not() -> None:
    recipe = recipe_of(base_precision="nf4", cuda_graphs=True, gradient_checkpointing="auto")
    assert plain_recipe(recipe, frozenset({FastPath.FUSED_LAYERS, FastPath.INT8})) == recipe
    changed = plain_recipe(recipe, frozenset(FastPath))
    assert (changed.base_precision, changed.cuda_graphs) == (BasePrecision.FULL, False)
    assert changed.gradient_checkpointing is GradientCheckpointing.OFF


@pytest.mark.slow
def test_a_run_trains_without_the_paths_that_failed(training_inputs: Path, tmp_path: Path, home: Home) -> None:
    job = make_job(training_inputs / "base", make_images(tmp_path / "images", [(64, 64)] * 2))
    folder = JobFolder(tmp_path / "run")
    checked = preflight(job, folder, home, on_progress=lambda message, done, total: None)
    losses = []
    for failed in (frozenset(), frozenset({FastPath.FUSED_LAYERS, FastPath.HALF_DECODING})):
        trainer = build_trainer(
            job,
            folder,
            replace(checked, failed_paths=failed),
            home=home,
            report=ignore,
            phases=PhaseReporter(ignore),
            should_stop=lambda: False,
        )
        assert trainer.weights.all_fused is not bool(failed)
        assert trainer.decodes_in_half is not bool(failed)
        losses.append(train_step(trainer, 0).read())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_run_asks_which_paths_have_failed_before_it_is_built(
    training_inputs: Path, tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Built(Exception):
        pass

    def build(job: Any, folder: Any, checked: Any, **named: Any) -> Any:
        seen.append((job.recipe.gradient_checkpointing, checked.failed_paths))
        raise Built

    failed = frozenset({FastPath.CHECKPOINTING})
    monkeypatch.setattr(train_module, "failures_of", lambda *given: failed)
    monkeypatch.setattr(train_module, "build_trainer", build)
    job = make_job(
        training_inputs / "base", make_images(tmp_path / "images", [(64, 64)] * 2), gradient_checkpointing="on"
    )
    with pytest.raises(Built):
        train_module.train(
            job, JobFolder.create(tmp_path / "run", job), home=home, report=ignore, should_stop=lambda: False
        )
    assert seen == [(GradientCheckpointing.OFF, failed)]
