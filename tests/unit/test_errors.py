from __future__ import annotations

from errno import EACCES, EBUSY, EDQUOT, EFBIG, EIO, ENOSPC, EROFS
from pathlib import Path

import pytest

from lora_studio.errors import (
    ConfigError,
    DiskFullError,
    InputError,
    JobError,
    NonFiniteLossError,
    OutOfMemoryError,
    StudioError,
    disk_errors,
)
from lora_studio.settings.recipe import Recipe


def test_exit_status_separates_wrong_input_from_failures() -> None:
    assert {kind.exit_status for kind in (InputError, ConfigError)} == {2}
    assert {kind.exit_status for kind in (JobError, OutOfMemoryError, DiskFullError, NonFiniteLossError)} == {1}


def test_text_of_an_error_is_message_and_remedy() -> None:
    assert str(StudioError("unet_lr is abc.", "Use a number.")) == "unet_lr is abc. Use a number."
    assert str(StudioError("unet_lr is abc.")) == "unet_lr is abc."


def test_validation_errors_become_one_line_per_field_with_its_value() -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.parse({"unet_lr": "abc", "epochs": 0, "nonsense": 1, "min_bucket_reso": 4096, "max_bucket_reso": 512})
    problems = caught.value.problems
    assert len(problems) == 3
    assert any(line.startswith("unet_lr: ") and "'abc'" in line for line in problems)
    assert any(line.startswith("epochs: ") and "'0'" in line for line in problems)
    assert any(line.startswith("nonsense: ") for line in problems)
    assert caught.value.message == "\n".join(problems)


def test_long_values_are_truncated() -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.parse({"unet_lr": "x" * 10_000})
    assert len(caught.value.message) < 250


@pytest.mark.parametrize("number", [ENOSPC, EDQUOT, EFBIG])
def test_full_disk_raises_disk_full_error(number: int) -> None:
    with pytest.raises(DiskFullError, match=r"thing\.json") as caught, disk_errors(Path("thing.json")):
        raise OSError(number, "full")
    assert caught.value.code == "disk_full"


@pytest.mark.parametrize("number", [EACCES, EROFS])
def test_missing_permission_raises_input_error(number: int) -> None:
    with pytest.raises(InputError, match=r"thing\.json") as caught, disk_errors(Path("thing.json")):
        raise OSError(number, "no")
    assert caught.value.code == "not_writable"


def test_a_failing_disk_raises_job_error() -> None:
    with pytest.raises(JobError, match=r"thing\.json") as caught, disk_errors(Path("thing.json")):
        raise OSError(EIO, "failed")
    assert caught.value.code == "disk_error"


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(OSError, match="broken") as caught, disk_errors(Path("thing.json")):
        raise OSError(EBUSY, "broken")
    assert not isinstance(caught.value, StudioError)
