"""A shared studio reads no path that comes from a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_studio.errors import InputError
from lora_studio.settings.job_specs import SweepJob, TagJob, TrainJob
from lora_studio.settings.subsets import Subset
from lora_studio.ui.plan.tab import PlanTab
from lora_studio.ui.server import Mode
from lora_studio.ui.state.jobs import Jobs
from lora_studio.ui.state.shared_paths import check_shared_job, check_shared_model
from lora_studio.ui.train.tab import TrainTab
from lora_studio.workspace.project import Home
from tests.support.interface import Interface, error_code
from tests.support.jobs import BASE, LORA, make_project


@pytest.mark.parametrize("text", ["SDXL 1.0", "embedded", "some/finetune", "mine.safetensors", ""])
def test_names_of_models_are_allowed(home: Home, text: str) -> None:
    home.models.mkdir(parents=True)
    (home.models / "mine.safetensors").write_bytes(b"")
    check_shared_model(text, home)


@pytest.mark.parametrize(
    "text", ["/etc/passwd", "~/model", "../x.safetensors", "other.safetensors", "a/b/c", ".", ".."]
)
def test_paths_are_refused(home: Home, text: str) -> None:
    with pytest.raises(InputError) as caught:
        check_shared_model(text, home)
    assert caught.value.code == "local_path"


def test_a_folder_with_the_form_of_a_repository_is_refused(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some" / "finetune").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        check_shared_model("some/finetune", home)


@pytest.mark.parametrize(
    "outside",
    [
        {"regularization": Path("/etc")},
        {"network_weights": LORA},
        {"dataset": Path("/etc")},
        {"vae": "/etc"},
        {"base": "/etc"},
        {"subsets": [Subset(image_dir=Path("/etc"), num_repeats=1)]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_job_that_reads_something_else_is_not_started(home: Home, outside: dict[str, Any]) -> None:
    project = make_project(home)
    job = TrainJob.parse({"name": "x", "dataset": project.dataset_dir, "base": BASE} | outside)
    with pytest.raises(InputError) as caught:
        Jobs(home, local=False).enqueue(project.path / "runs" / "001-x", job)
    assert caught.value.code == "local_path"
    assert not (project.path / "runs").exists()


@pytest.mark.parametrize("setting", ["optimizer_type", "lr_scheduler_type"])
@pytest.mark.parametrize("name", ["antigravity.X", "torch.hub.load", "subprocess.Popen", "torch.optimus.X"])
def test_no_module_is_imported_by_its_name(home: Home, setting: str, name: str) -> None:
    project = make_project(home)
    values = {"name": "x", "dataset": project.dataset_dir, "base": BASE}
    with pytest.raises(InputError) as caught:
        check_shared_job(TrainJob.parse(values | {"recipe": {setting: name}}), home)
    assert caught.value.code == "shared_class"


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"optimizer_type": "torch.optim.RAdam", "lr_scheduler_type": "CosineAnnealingLR"},
        {"optimizer_type": "pytorch_optimizer.Lion", "lr_scheduler_type": "torch.optim.lr_scheduler.CyclicLR"},
    ],
    ids=str,
)
def test_libraries_of_optimizers_are_imported(home: Home, recipe: dict[str, Any]) -> None:
    project = make_project(home)
    job = TrainJob.parse({"name": "x", "dataset": project.dataset_dir, "base": BASE, "recipe": recipe})
    check_shared_job(job, home)


def test_taggers_and_feature_models_are_not_folders(home: Home) -> None:
    project = make_project(home)
    for tagger in ("wd14", "demo", "SmilingWolf/wd-vit-tagger-v3"):
        check_shared_job(TagJob(dataset=project.dataset_dir, tagger=tagger), home)
    for job in (
        TagJob(dataset=project.dataset_dir, tagger="/etc"),
        TagJob(dataset=project.dataset_dir, tagger="wd14", also=["~/tagger"]),
        SweepJob(bases=[BASE], prompts=["x"], feature_model="/etc"),
    ):
        with pytest.raises(InputError) as caught:
            check_shared_job(job, home)
        assert caught.value.code == "local_path"


def test_imported_settings_open_no_file_that_they_name(home: Home, tmp_path: Path) -> None:
    make_project(home)
    secret = tmp_path / "secret.txt"
    secret.write_text("not for the browser", "utf-8")
    (tmp_path / "data.toml").write_text("shuffle_caption = 'not for the browser'", "utf-8")
    settings = tmp_path / "kohya.toml"
    settings.write_text(
        f"unet_lr = 3e-4\nsample_prompts = '{secret}'\ndataset_config = '{tmp_path / 'data.toml'}'\n"
        f"network_weights = '{LORA}'\nreg_data_dir = '{tmp_path}'\n",
        "utf-8",
    )
    shared = Interface(home, Mode.SHARED)
    shared.open_project("ink")
    shown = shared.call(TrainTab.import_upload, train_import=str(settings))
    assert "not for the browser" not in str(shown)
    assert home.project("ink").info().recipe["unet_lr"] == 3e-4
    assert not shared.contents_of("train_network_weights")
    shared.blocks.close(verbose=False)
    local = Interface(home)
    local.open_project("ink")
    shown = local.call(TrainTab.import_upload, train_import=str(settings))
    assert error_code(shown["train_notice"]) == "no_subsets", "a local studio reads the dataset_config"
    local.blocks.close(verbose=False)


def test_a_link_out_of_the_home_is_followed(home: Home) -> None:
    project = make_project(home)
    (project.path / "loras").mkdir()
    (project.path / "loras" / "link.safetensors").symlink_to(LORA)
    job = SweepJob(loras=[project.path / "loras" / "link.safetensors"], bases=[BASE], prompts=["x"])
    with pytest.raises(InputError):
        check_shared_job(job, home)
    check_shared_job(job.model_copy(update={"loras": [project.path / "loras" / "own.safetensors"]}), home)


def test_a_base_by_its_path_changes_no_project_of_a_shared_studio(home: Home) -> None:
    project = make_project(home)
    shared = Interface(home, Mode.SHARED)
    shared.open_project("ink")
    assert error_code(shared.call(PlanTab.update_plan, plan_base="/etc/passwd")["plan_notice"]) == "local_path"
    assert project.info().base == BASE
    shared.blocks.close(verbose=False)
