"""The LoRA files of a project, by ids from the browser."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_studio.errors import InputError
from lora_studio.lora.alphas import peft_config_file
from lora_studio.ui.state.lora_files import import_lora, lora_choices, selected_loras
from lora_studio.workspace.project import Home, Project
from tests.support.jobs import LORA, make_project, make_run


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(Home(tmp_path / "home"))


def test_choices_are_final_files_checkpoints_and_imports(project: Project) -> None:
    first = make_run(project)
    shutil.copyfile(LORA, first.path / "checkpoints" / "ink-step000006.safetensors")
    shutil.copyfile(LORA, first.path / "checkpoints" / "ink-best.safetensors")
    make_run(project, final=False, epochs=1)
    imported = import_lora(project, LORA)
    choices = lora_choices(project)
    assert [choice.label for choice in choices.values()] == [
        "002-ink · epoch 1",
        "001-ink · final",
        "001-ink · lowest validation loss",
        "001-ink · epoch 2",
        "001-ink · epoch 1",
        "001-ink · step 6",
        f"{LORA.stem} · imported",
    ]
    assert [choice.label for choice in choices.values() if choice.is_final] == ["001-ink · final"]
    assert choices[imported].path.read_bytes() == LORA.read_bytes()
    assert selected_loras(project, [imported]) == [project.loras_dir / LORA.name]


def test_the_configuration_of_peft_is_imported_with_its_lora(project: Project, tmp_path: Path) -> None:
    shutil.copyfile(LORA, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 6}', "utf-8")
    imported = import_lora(project, tmp_path / "adapter_model.safetensors")
    path = lora_choices(project)[imported].path
    config = peft_config_file(path)
    assert config is not None
    assert config.parent == project.loras_dir
    assert config.read_text("utf-8") == '{"lora_alpha": 6}'


@pytest.mark.parametrize("ids", [None, [], "001-ink/ink.safetensors", [7], ["../x"], ["001-ink/job.toml"]])
def test_other_files_are_refused(project: Project, ids: object) -> None:
    make_run(project)
    with pytest.raises(InputError) as raised:
        selected_loras(project, ids)
    assert raised.value.code == "no_lora"
