"""The GPU table on a CPU with a small UNet: everything runs except what needs CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_studio.settings.choices import BasePrecision
from lora_studio.training.data.batch import BatchTensors
from lora_studio.training.speed.gradient_pass import EagerPass
from tests.support import gpu_steps
from tests.support.gpu_steps import Case, Launch, ModelSpec, cases, ceiling, gpu_table, recommendation, table
from tests.support.graph_double import FakeCapturer
from tests.support.tiny_sdxl import make_pipeline


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    unet = make_pipeline(tmp_path_factory.mktemp("tokenizers"), layers=1, depths=(1, 1, 1)).unet
    return ModelSpec(dict(unet.config), 64, 4, torch.device("cpu"), torch.float32)


@pytest.mark.slow
def test_every_row_has_figures_or_an_error(
    spec: ModelSpec, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    capturer = FakeCapturer()
    step = EagerPass.__call__

    def timed(eager: EagerPass, batch: BatchTensors) -> torch.Tensor:
        capturer.now += capturer.eager_seconds
        return step(eager, batch)

    monkeypatch.setattr(EagerPass, "__call__", timed)
    full, packed = BasePrecision.FULL, BasePrecision.INT8
    monkeypatch.setattr(gpu_steps, "WARM_UP", 1)
    chosen = [Case(1, full, Launch.GRAPHS), Case(2, packed, Launch.EAGER, 1.0)]
    table(spec, chosen, 0.01, lambda device: capturer, steps=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:34].strip() for line in lines[1:5]] == [
        "batch 1, peft, bf16",
        "batch 1, bf16, CUDA graphs",
        "batch 2, peft, bf16",
        "batch 2, int8 within 0 GB, eager",
    ]
    for line in lines[1:5]:
        assert float(line[34:42]) > 0, line
    assert lines[2].endswith("take 0.500 s per batch with a CUDA graph instead of 1.000 s")
    assert lines[4].endswith("blocks recomputed")
    assert len(capturer.held) == 1
    monkeypatch.setattr(gpu_steps, "random_batch", out_of_memory)
    table(spec, chosen[:1], 0.01)
    assert capsys.readouterr().out.splitlines()[-3].split(" missing: ")[1] == "CUDA out of memory."


def out_of_memory(*given: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")


def test_table_has_the_cases_of_the_goals() -> None:
    wanted = {(batch, base, launch) for batch in (1, 2, 4) for base in BasePrecision for launch in Launch}
    assert {(case.batch, case.base, case.launch) for case in cases() if not case.limit} == wanted
    assert {(case.base, case.limit) for case in cases() if case.limit} == {
        (BasePrecision.INT8, 8e9),
        (BasePrecision.NF4, 6e9),
    }


def test_recommends_what_saves_a_tenth_at_every_batch_size() -> None:
    full = BasePrecision.FULL
    seconds = {Case(batch, full, Launch.EAGER): 1.0 for batch in (1, 4)}
    seconds |= {Case(1, full, Launch.GRAPHS): 0.7, Case(4, full, Launch.GRAPHS): 0.95}
    seconds |= {Case(1, full, Launch.COMPILED): 0.7, Case(4, full, Launch.COMPILED): 0.88}
    graphs, compiled = recommendation(seconds).splitlines()
    assert graphs == "CUDA graphs: saves 30%, 5% of an eager step, not recommended"
    assert compiled == "compiled: saves 30%, 12% of an eager step, recommended"


def test_measures_the_ceiling_and_reports_a_missing_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert ceiling(torch.device("cpu"), torch.float32, side=64, times=2) > 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu_table()
    assert capsys.readouterr().out == "No CUDA GPU here: the steps at SDXL's real size are not measured.\n"
