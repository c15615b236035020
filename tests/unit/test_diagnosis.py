from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from lora_studio import diagnosis
from lora_studio.device import Gpu
from lora_studio.diagnosis import Diagnosis, doctor
from lora_studio.errors import InputError
from lora_studio.settings.choices import Optimizer, Precision
from lora_studio.training import probes
from lora_studio.training.speed import self_test
from lora_studio.training.speed.self_test import Comparison, FastPath
from lora_studio.workspace.project import Home

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything work without trying it: the probes have tests of their own."""
    monkeypatch.setattr(probes, "list_devices", lambda: [CPU])
    monkeypatch.setattr(probes, "try_libraries", lambda: {"peft and transformers": ""})
    monkeypatch.setattr(probes, "try_precisions", lambda device: {Precision.FP32.value: ""})
    monkeypatch.setattr(probes, "try_base_precisions", lambda device: {"nf4": ""})
    monkeypatch.setattr(probes, "try_optimizers", lambda device: dict.fromkeys(Optimizer, ""))
    monkeypatch.setattr(self_test, "self_test", lambda device, dtype: iter([compared(FastPath.NF4, 0.09)]))


def compared(path: FastPath, difference: float) -> Comparison:
    return Comparison(path=path, difference=difference, tolerance=0.15, seconds=0.002, plain_seconds=0.001)


def fail(monkeypatch: pytest.MonkeyPatch, probe: str, name: str, message: str = "it does not work") -> None:
    monkeypatch.setattr(probes, probe, lambda device: {name: message})


def test_a_working_installation(home: Home) -> None:
    report = doctor(home)
    assert report.ok
    assert report.model_dump()["ok"] is True
    assert report.pytorch["version"] == torch.__version__
    assert {check.name for check in report.libraries} >= {"torch", "gradio", "peft"}
    assert {check.name for check in report.disk} >= {"home", "cache"}
    (cpu,) = report.devices
    assert cpu.device == "cpu"
    assert {f"optimizer {name}" for name in Optimizer} <= {check.name for check in cpu.checks}
    assert not home.path.exists()


@pytest.mark.parametrize(
    ("probe", "name", "ok"),
    [
        ("try_optimizers", Optimizer.ADAFACTOR, False),
        ("try_precisions", Precision.FP32, False),
        ("try_optimizers", Optimizer.PAGED_ADAMW8BIT, True),
        ("try_base_precisions", "nf4", True),
    ],
)
def test_only_what_a_cpu_needs_makes_the_report_fail(
    home: Home, monkeypatch: pytest.MonkeyPatch, probe: str, name: str, ok: bool
) -> None:
    fail(monkeypatch, probe, name)
    report = doctor(home)
    assert report.ok is ok
    assert any("it does not work" in line for line in report.lines())


def test_a_gpu_is_compared_with_the_plain_computation(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor(home).devices[0].self_test == []  # not on a CPU
    monkeypatch.setattr(probes, "list_devices", lambda: [torch.device("cuda", 0)])
    monkeypatch.setattr(probes, "gpu_memory", lambda device: (2**30, 2**33))
    monkeypatch.setattr(probes, "run_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "RTX 4090")
    right, wrong = compared(FastPath.NF4, 0.09), compared(FastPath.FUSED_LAYERS, 0.5)
    monkeypatch.setattr(self_test, "self_test", lambda device, dtype: iter([right, wrong]))
    report = doctor(home)
    assert report.ok  # runs use the fallback
    assert report.devices[0].self_test == [value.model_dump(mode="json") for value in (right, wrong)]
    lines = [line for line in report.lines() if "self-test" in line]
    assert [line.split()[0] for line in lines] == ["ok", "no"]
    assert FastPath.FUSED_LAYERS.fallback in lines[1]
    assert all("2.0 ms, plain 1.0 ms" in line for line in lines)


def test_a_gpu_needs_everything_and_the_cpu_beside_it_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(probes, "list_devices", lambda: [gpu, CPU])
    monkeypatch.setattr(probes, "gpu_memory", lambda device: (2**30, 2**33) if device == gpu else None)
    monkeypatch.setattr(probes, "run_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(probes, "torch_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "RTX 4090")
    for broken in (gpu, CPU):
        monkeypatch.setattr(
            probes, "try_optimizers", lambda device, broken=broken: {"AdamW8bit": "no" if device == broken else ""}
        )
        report = doctor(home)
        assert report.ok is (broken == CPU)
        assert report.devices[0].memory_gib == (1.0, 8.0)


def test_an_unusable_gpu_fails_with_its_remedy(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise InputError("The RTX 4090 cannot be used.", "Run pip install torch==2.13.0+cu130.", code="gpu")

    monkeypatch.setattr(diagnosis, "check_gpu_is_usable", refuse)
    monkeypatch.setattr(diagnosis, "find_gpus", lambda: (Gpu("RTX 4090", 24.0, "581.29", 8.9),))
    report = doctor(home)
    assert not report.ok
    text = "\n".join(report.lines())
    for part in ("RTX 4090", "581.29", "8.9", "pip install torch==2.13.0+cu130"):
        assert part in text


def test_a_missing_library_fails_and_another_version_does_not(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [Requirement("torch<1"), Requirement("no-such-library>=2")]
    monkeypatch.setattr(diagnosis, "requirements", lambda: wanted)
    old, missing, *_ = doctor(home).libraries
    assert (old.works, old.needed) == (False, False)
    assert (missing.works, missing.needed) == (False, True)
    assert "no-such-library>=2" in missing.message
    monkeypatch.setattr(diagnosis, "requirements", lambda: wanted[:1])
    assert doctor(home).ok


def test_the_report_has_no_path_of_the_user(home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    user = tmp_path / "saria"
    user.mkdir()
    monkeypatch.setattr(Path, "home", lambda: user)
    monkeypatch.setattr(diagnosis, "check_gpu_is_usable", lambda: _raise(OSError(f"{user}/lib/libcuda.so is missing")))
    report = doctor(Home(user / "lora-studio"))
    for text in ("\n".join(report.lines()), report.model_dump_json()):
        assert str(user) not in text
        assert "~/lora-studio" in text
        assert "~/lib/libcuda.so" in text


def _raise(error: Exception) -> None:
    raise error


def test_the_report_is_json_that_can_be_read_back(home: Home) -> None:
    report = doctor(home)
    assert Diagnosis.model_validate_json(report.model_dump_json()) == report


@pytest.mark.slow
def test_everything_works_where_the_tests_run(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    report = doctor(home)
    assert report.ok, "\n".join(report.lines())


def test_what_libraries_print_is_not_in_the_output(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def noisy(device: torch.device) -> dict[str, str]:
        print("Using decoupled weight decay")
        print("no kernels", file=sys.stderr)
        warnings.warn("Paged optimizers are not supported", stacklevel=1)
        return {"nf4": ""}

    monkeypatch.setattr(probes, "try_base_precisions", noisy)
    assert doctor(home).ok
    assert capsys.readouterr() == ("", "")
