"""Hardware and time limit of a training on Hugging Face Jobs."""

from __future__ import annotations

import pytest
from huggingface_hub import JobHardware

from lora_studio.errors import ConfigError
from lora_studio.settings.hf_jobs import FlavorGpu, HfJobsSettings, gpu_of_flavor


@pytest.mark.parametrize(("timeout", "seconds"), [("90m", 5400), ("3h", 10800), ("1.5h", 5400), ("0.5d", 43200)])
def test_a_time_limit_has_a_unit(timeout: str, seconds: int) -> None:
    assert HfJobsSettings.parse({"timeout": timeout}).timeout_seconds == seconds


@pytest.mark.parametrize("timeout", ["", "3", "3 h", "0m", "0.1s", "-3h", "3x", "h"])
def test_another_time_limit_is_refused_with_an_example(timeout: str) -> None:
    with pytest.raises(ConfigError, match=r"timeout.*90m"):
        HfJobsSettings.parse({"timeout": timeout})


def test_the_gpu_of_every_flavor_of_the_library_is_known() -> None:
    without = [item.value for item in JobHardware if gpu_of_flavor(item.value) is None]
    assert without == [item.value for item in JobHardware if item.value.startswith("cpu")]


@pytest.mark.parametrize(
    ("flavor", "gpu"),
    [
        ("a10g-large", FlavorGpu("A10G", 22.5)),
        ("l4x4", FlavorGpu("L4", 22.5, 4)),
        ("l40sx1", FlavorGpu("L40S", 45.0)),
        ("rtx-pro-6000x2", FlavorGpu("RTX PRO 6000", 95.6, 2)),
        ("a10", None),
        ("tpu-9", None),
    ],
)
def test_flavors_name_their_gpu(flavor: str, gpu: FlavorGpu | None) -> None:
    assert gpu_of_flavor(flavor) == gpu
