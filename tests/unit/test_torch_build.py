from __future__ import annotations

import re

import pytest
import torch

from lora_studio import torch_build
from lora_studio.torch_build import TorchBuild, installed_torch

CPU_BUILD = TorchBuild("2.13.0+cpu")
CUDA_13 = TorchBuild("2.13.0+cu130", cuda="13.0")
ADA, PASCAL, BLACKWELL, KEPLER = 8.9, 6.1, 12.0, 3.5


@pytest.fixture(autouse=True)
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_build, "installed_version", lambda name: {"torchvision": "0.28.0+cpu"}[name])


def test_the_installed_build_is_read_without_importing_torch() -> None:
    assert installed_torch() == TorchBuild(torch.__version__, torch.version.cuda, torch.version.hip)


@pytest.mark.parametrize(
    ("build", "capability", "driver", "fits"),
    [
        (CPU_BUILD, ADA, 581, False),
        (CUDA_13, ADA, 581, True),
        (CUDA_13, ADA, 576, False),
        (CUDA_13, PASCAL, 581, False),
        (CUDA_13, BLACKWELL, 580, True),
        (CUDA_13, None, None, True),
        (TorchBuild("2.13.0+cu126", "12.6"), PASCAL, 581, True),
        (TorchBuild("2.13.0+cu126", "12.6"), BLACKWELL, 581, False),
        (TorchBuild("2.11.0+cu128", "12.8"), BLACKWELL, 572, True),
        (TorchBuild("2.11.0+cu128", "12.8"), ADA, 470, False),
    ],
)
def test_a_build_needs_a_new_enough_driver_and_code_for_the_gpu(
    build: TorchBuild, capability: float | None, driver: int | None, fits: bool
) -> None:
    assert (build.mismatch(capability, driver) == "") is fits


@pytest.mark.parametrize(
    ("build", "capability", "driver", "index"),
    [
        (CPU_BUILD, ADA, 581, "cu130"),
        (CPU_BUILD, None, None, "cu130"),
        (CPU_BUILD, ADA, 560, "cu126"),
        (CPU_BUILD, PASCAL, 581, "cu126"),
        (CUDA_13, PASCAL, 581, "cu126"),
        (CUDA_13, ADA, 560, "cu126"),
        (TorchBuild("2.11.0"), BLACKWELL, 572, "cu128"),
        (TorchBuild("2.8.0"), ADA, 581, "cu128"),
    ],
)
def test_the_remedy_is_a_command_for_this_release_card_and_driver(
    build: TorchBuild, capability: float | None, driver: int | None, index: str
) -> None:
    remedy = build.remedy(capability, driver)
    found = re.search(r"pip install torch==(\S+) torchvision==(\S+) --index-url (\S+?)[,.]? ", remedy)
    assert found is not None
    release = build.version.partition("+")[0]
    assert found.groups() == (
        f"{release}+{index}",
        f"0.28.0+{index}",
        f"https://download.pytorch.org/whl/{index}",
    )


@pytest.mark.parametrize(
    ("build", "capability", "driver", "command"), [(CPU_BUILD, ADA, 470, "cu130"), (CUDA_13, BLACKWELL, 572, "")]
)
def test_a_driver_that_is_too_old_for_every_build_is_to_be_updated(
    build: TorchBuild, capability: float, driver: int, command: str
) -> None:
    remedy = build.remedy(capability, driver)
    assert "version 580" in remedy
    assert ("pip install" in remedy) is bool(command)
    assert command in remedy


def test_no_command_for_a_gpu_that_no_build_has_code_for() -> None:
    assert "pip install" not in CPU_BUILD.remedy(KEPLER, 470)
