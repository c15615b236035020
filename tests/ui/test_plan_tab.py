"""The Plan tab: answers are saved and update the plan; Train opens with the recipe."""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path

import pytest
import torch
from markupsafe import Markup
from PIL import Image
from safetensors.torch import save_file

from lora_studio.models.catalogue import find_base
from lora_studio.models.found import FOLDERS_VARIABLE
from lora_studio.models.locate import SDXL_KEY
from lora_studio.planning.project_plan import load_plan
from lora_studio.planning.speeds import MIN_STEPS, MeasuredSpeed
from lora_studio.planning.trigger import propose_triggers
from lora_studio.sampling.cells import SweepPlan
from lora_studio.settings.job_specs import DownloadJob, SweepJob, TrainJob
from lora_studio.ui.context import NEW_RUN
from lora_studio.ui.plan import view
from lora_studio.ui.plan.tab import PlanTab
from lora_studio.ui.server import Mode
from lora_studio.ui.state.base_models import ChosenBase
from lora_studio.ui.sweep.tab import SweepTab
from lora_studio.ui.train.tab import TrainTab
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from lora_studio.workspace.project import Home, Project
from tests.support.charts import charts_in, marks_of
from tests.support.interface import Interface, error_code
from tests.support.jobs import BASE, make_project, running_status


@pytest.fixture
def project(home: Home) -> Project:
    return make_project(home, images=0)


def test_answers_are_saved_and_update_the_plan(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    shown = interface.call(
        PlanTab.update_plan, plan_kind="concept", plan_base="Pony V6 XL", plan_trigger=" ink_new ", plan_images=30
    )
    info = project.info()
    assert (info.kind, info.base, info.trigger_word) == ("concept", "Pony V6 XL", "ink_new")
    assert "30 images × " in shown["plan_tiles"]
    assert "score_9" in shown["plan_recipe"]
    assert "characters and styles" in shown["plan_base"]["info"]


def test_numbers_out_of_their_bounds_are_refused(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    before = project.info()
    for box, value, code in [
        ("plan_images", -3, "no_images"),
        ("plan_images", 1_000_000_000, "images"),
        ("plan_vram", -1, "vram_gib"),
        ("plan_vram", 1e300, "vram_gib"),
        ("plan_hours", 0, "hours"),
    ]:
        shown = interface.call(PlanTab.update_plan, **{box: value})
        assert error_code(shown["plan_notice"]) == code, box
        assert f"is {value:,}." in shown["plan_notice"]
        interface.open_project("ink")
    assert project.info() == before


def test_train_opens_with_the_plan(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    shown = interface.call(PlanTab.open_train, plan_images=2000, plan_kind="style")
    assert shown["run"] == NEW_RUN
    assert "1,350" in shown["plan_tiles"]
    train = interface.call(TrainTab.tab_selected)
    assert train["train_tiles"] == shown["plan_tiles"]
    assert (train["recipe_epochs"]["value"], train["recipe_batch_size"]["value"]) == ("3", "2")
    assert "changed" not in train["recipe_epochs"]["elem_classes"]
    assert project.info().recipe == {}


def test_answers_are_shown_again_after_a_reload(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    before = interface.call(PlanTab.update_plan, plan_images=200, plan_hours=2, plan_vram=12)
    shown = interface.open_project("ink")
    assert [shown[box]["value"] for box in ("plan_images", "plan_hours", "plan_vram")] == [200, 2, 12]
    assert shown["plan_tiles"] == before["plan_tiles"] == shown["train_tiles"]


def test_the_plan_names_the_changes_that_train_has(project: Project, interface: Interface) -> None:
    assert interface.open_project("ink")["plan_changes"] == ""
    interface.call(TrainTab.save_edit, recipe_network_dim="77", recipe_epochs="1")
    shown = interface.call(PlanTab.tab_selected)["plan_changes"]
    for text in ("2 settings", "Network rank (dim)", "77", "plan: 32"):
        assert text in shown
    assert interface.contents_of("train_tiles") != interface.contents_of("plan_tiles")


def test_users_text_is_escaped(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    shown = interface.call(PlanTab.update_plan, plan_trigger="<img src=x onerror=alert(1)>", plan_base="<b>base</b>")
    assert not any("<img src=x" in str(value) or "<b>base" in str(value) for value in shown.values() if value)
    assert interface.call(TrainTab.tab_selected)


def test_images_are_counted_in_the_dataset(home: Home, interface: Interface) -> None:
    make_project(home, images=4)
    shown = interface.open_project("ink")
    assert shown["plan_images"]["value"] == 4
    assert shown["plan_images"]["interactive"] is False
    assert "4 images × " in shown["plan_tiles"]


def test_only_images_that_train_are_counted(home: Home, interface: Interface) -> None:
    project = make_project(home, images=4)
    shutil.copy(next(project.images_dir.glob("*.png")), project.dataset_dir / "outside of the sets.png")
    (project.images_dir / "damaged.png").write_text("no image", "utf-8")
    shown = interface.open_project("ink")
    assert shown["plan_images"]["value"] == 4
    assert "4 images × " in shown["plan_tiles"]


def test_a_proposed_trigger_word_is_used_by_a_click(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    shown = interface.call(PlanTab.update_plan, plan_trigger="blue_hair")
    proposal = propose_triggers("ink")[0]
    assert "blue · _ · hair" in shown["plan_trigger_help"]
    assert f'data-pick="{proposal}"' in shown["plan_trigger_help"]
    picked = interface.call(PlanTab.pick_trigger, pick=proposal)
    assert picked["plan_trigger"]["value"] == project.info().trigger_word == proposal
    assert "data-pick" not in picked["plan_trigger_help"]
    refused = interface.call(PlanTab.pick_trigger, pick="<b>")
    assert error_code(refused["plan_notice"]) == "trigger"
    assert project.info().trigger_word == proposal


def test_the_time_of_a_step_is_measured(
    home: Home, interface: Interface, started: list[tuple[JobFolder, bool]]
) -> None:
    project = make_project(home)
    interface.open_project("ink")
    shown = interface.call(PlanTab.measure_time)
    [(folder, resume)] = started
    job = folder.job()
    assert isinstance(job, TrainJob)
    assert not resume
    assert job.recipe.max_train_steps == MIN_STEPS
    assert (job.recipe.sample_prompts, job.recipe.network_dim) == ([], load_plan(project).recipe.network_dim)
    assert not project.runs()
    assert shown["plan_measure"]["interactive"]

    folder.set_status(JobStatus(**running_status(), done=3, total=MIN_STEPS, message="Training"))
    shown = interface.call(PlanTab.tick)
    assert (shown["plan_measure"]["visible"], shown["plan_measure_stop"]["visible"]) == (False, True)
    assert f"Step 3 of {MIN_STEPS}" in shown["plan_measurement"]
    assert error_code(interface.call(PlanTab.measure_time)["plan_notice"]) == "busy"
    interface.call(PlanTab.stop_measuring)
    assert folder.stop_requested()

    recipe = load_plan(project).next_run().recipe
    assert recipe is not None
    speed = MeasuredSpeed(base=find_base(BASE).name, device="CPU", recipe=recipe, seconds=2.0)
    home.speeds.write_text(speed.model_dump_json() + "\n", "utf-8")
    folder.set_status(JobStatus(state=JobState.DONE))
    shown = interface.call(PlanTab.tick)
    assert "measured in an earlier run" in shown["plan_tiles"]
    assert shown["plan_measurement"] == ""
    assert interface.call(PlanTab.tick) == {}

    interface.call(PlanTab.measure_time)
    assert len(project.measurements()) == 1


def test_without_images_no_time_is_measured(project: Project, interface: Interface) -> None:
    shown = interface.open_project("ink")
    assert not shown["plan_measure"]["interactive"]
    assert error_code(interface.call(PlanTab.measure_time)["plan_notice"]) == "no_images"


def test_ways_to_save_memory_are_listed(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    shown = interface.call(PlanTab.update_plan, plan_vram=8)["plan_memory"]
    for text in ("Recompute nothing", "Set the base weights to nf4", "fits"):
        assert text in shown
    assert ">fits<" not in interface.call(PlanTab.update_plan, plan_vram=3)["plan_memory"]


def test_what_if_is_computed_only_while_its_fold_is_open(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    interface.call(PlanTab.update_plan, plan_images=24, plan_vram=12)
    assert not interface.contents_of("plan_what_if_plots")
    shown = interface.call(PlanTab.show_what_if, plan_what_if_variable="batch_size")["plan_what_if_plots"]
    charts = charts_in(shown)
    assert list(charts) == ["Steps", "Time", "GPU memory", "File size"]
    planned = load_plan(project).plan
    assert planned is not None
    assert f"{planned.steps.total_steps:,} steps" in charts["Steps"]["reading"]
    assert f"{planned.vram_gib:.1f} GiB" in charts["GPU memory"]["reading"]
    assert marks_of(charts["Time"]) == {"current": [planned.recipe.batch_size]}
    again = interface.call(PlanTab.update_plan, plan_images=200)["plan_what_if_plots"]
    planned = load_plan(project).plan
    assert planned is not None
    assert f"{planned.steps.total_steps:,} steps" in again
    assert interface.open_project("ink")["plan_what_if_plots"] == ""


def test_a_plan_that_cannot_be_made_has_no_plots(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    interface.call(PlanTab.update_plan, plan_base="/nowhere/base.safetensors")
    shown = interface.call(PlanTab.show_what_if, plan_what_if_variable="epochs")
    assert shown["plan_what_if_plots"] == ""


def test_the_plan_is_shared_as_text_and_as_a_picture(project: Project, interface: Interface) -> None:
    shown = interface.open_project("ink")
    planned = load_plan(project).plan
    assert planned is not None
    assert html.unescape(shown["plan_copy"].split("<pre hidden>")[1]).startswith(planned.describe())
    assert shown["plan_picture"] == ""
    drawn = interface.call(PlanTab.draw_picture)
    with Image.open(drawn["plan_picture_download"]["value"]) as picture:
        assert (picture.format, picture.size) == ("PNG", (1200, 675))
        assert len(set(picture.convert("L").get_flattened_data())) > 50  # text, with its anti-aliased edges
    assert interface.call(PlanTab.update_plan, plan_images=99)["plan_picture"] == ""


def test_recommendations_link_to_sections_that_the_page_has(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    shown = interface.call(PlanTab.update_plan, plan_trigger="", plan_images=4)
    links = set(re.findall(r'href="#(guide-[\w-]+)"', shown["plan_recipe"]))
    assert {"guide-learning-rates", "guide-network", "guide-dataset-size"} <= links
    links |= set(re.findall(r'href="#(guide-[\w-]+)"', shown["plan_cautions"]))
    assert {"guide-trigger-word", "guide-images"} <= links
    assert links <= set(re.findall(r'<details id="([\w-]+)"', interface.contents_of("plan_guide")))


def test_a_change_in_train_is_marked_in_the_plan_and_taken_back_by_a_click(
    project: Project, interface: Interface
) -> None:
    interface.open_project("ink")
    interface.call(TrainTab.save_edit, recipe_network_dim="77", recipe_epochs="1")
    shown = interface.call(PlanTab.tab_selected)
    assert shown["plan_recipe"].count('<tr class="changed">') == 2
    for text in ("Changed in Train to <strong>77</strong>", 'data-pick="network_dim"'):
        assert text in shown["plan_recipe"]
    shown = interface.call(PlanTab.take_back, pick="network_dim")
    assert project.info().recipe == {"epochs": 1}
    assert shown["plan_recipe"].count('<tr class="changed">') == 1
    train = interface.call(TrainTab.tab_selected)
    assert train["recipe_network_dim"]["value"] == "32"
    assert "changed" not in train["recipe_network_dim"]["elem_classes"]
    assert interface.contents_of("recipe_epochs") == "1"
    interface.call(TrainTab.save_edit, recipe_network_dim="48")
    interface.call(TrainTab.tab_selected)
    assert project.info().recipe == {"network_dim": 48, "epochs": 1}
    assert interface.call(PlanTab.take_back, pick=":all")["plan_changes"] == ""
    interface.call(TrainTab.tab_selected)
    assert project.info().recipe == {}
    interface.call(TrainTab.save_edit)
    assert project.info().recipe == {}


def test_the_bare_base_is_tested_with_and_without_the_trigger_word(
    home: Home, interface: Interface, started: list[tuple[JobFolder, bool]]
) -> None:
    project = make_project(home)
    project.save_info(project.info().model_copy(update={"trigger_word": "ink_hc", "base": "embedded"}))
    shown = interface.open_project("ink")
    assert (shown["plan_test_first"]["interactive"], shown["plan_before"]) == (True, "")
    interface.call(PlanTab.test_first)
    [(folder, _)] = started
    job = folder.job()
    assert isinstance(job, SweepJob)
    assert (job.loras, job.bases) == ([], [project.info().base])
    assert [("ink_hc" in prompt) for prompt in job.prompts] == [True, False] * (len(job.prompts) // 2)
    folder.set_status(JobStatus(**running_status(), done=1, total=len(job.prompts), message="Drawing"))
    first = SweepPlan(job, []).cells[0]
    picture = folder.path / SweepPlan(job, []).path(first)
    picture.parent.mkdir()
    Image.new("RGB", (8, 8)).save(picture)
    shown = interface.call(PlanTab.tick)
    assert (shown["plan_test_first"]["visible"], shown["plan_test_first_stop"]["visible"]) == (False, True)
    assert "with ink_hc" in shown["plan_before"]
    assert shown["plan_before"].count("<img") == 1
    assert error_code(interface.call(PlanTab.test_first)["plan_notice"]) == "busy"
    interface.call(PlanTab.stop_first_test)
    assert folder.stop_requested()
    folder.set_status(JobStatus(state=JobState.STOPPED))
    assert interface.call(PlanTab.tick)["plan_test_first"]["visible"]
    assert "with ink_hc" in interface.call(SweepTab.tab_selected)["test_before"]
    assert interface.call(PlanTab.update_plan, plan_base="SDXL 1.0")["plan_before"] == "", "another base"
    assert "with ink_hc" in interface.call(PlanTab.update_plan, plan_base="embedded")["plan_before"]


def test_a_base_that_is_not_here_is_downloaded(
    project: Project, interface: Interface, started: list[tuple[JobFolder, bool]], home: Home
) -> None:
    interface.open_project("ink")
    shown = interface.call(PlanTab.update_plan, plan_base="DreamShaper XL")
    assert shown["plan_download"]["visible"]
    assert not shown["plan_test_first"]["interactive"]
    interface.call(PlanTab.download_base)
    folder = home.download_of("DreamShaper XL")
    assert started == [(folder, False)]
    assert folder.job() == DownloadJob(base="DreamShaper XL")

    status = {**running_status(), "done": 3_000_000_000, "total": 6_000_000_000, "seconds_left": 61.0}
    folder.set_status(JobStatus(**status))
    shown = interface.call(PlanTab.tick)
    assert (shown["plan_download"]["visible"], shown["plan_download_stop"]["visible"]) == (False, True)
    for text in ("3.0 of 6.0 GB", "50%", "1 min 01 s"):
        assert text in shown["plan_base_facts"]
    reloaded = interface.open_project("ink")
    assert "50%" in reloaded["plan_base_facts"]
    assert reloaded["job_pill"]["value"].startswith("Downloading 50%")
    interface.call(PlanTab.stop_download)
    assert folder.stop_requested()

    folder.set_status(JobStatus(state=JobState.STOPPED, done=1, total=2))
    shown = interface.call(PlanTab.tick)
    assert "Continue" in shown["plan_download"]["value"]
    interface.call(PlanTab.download_base)
    assert started[-1] == (folder, True)
    folder.set_status(JobStatus(state=JobState.FAILED, message="No network.", code="hub_download"))
    assert error_code(interface.call(PlanTab.tick)["plan_base_facts"]) == "hub_download"


def test_models_on_this_machine_are_offered(
    project: Project, home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(FOLDERS_VARIABLE, str(tmp_path / "mine"))
    (tmp_path / "mine").mkdir()
    save_file({SDXL_KEY: torch.zeros(1)}, tmp_path / "mine" / "mix.safetensors")
    save_file({"double_blocks.0": torch.zeros(1)}, tmp_path / "mine" / "flux.safetensors")
    path = str(tmp_path / "mine" / "mix.safetensors")
    for mode, offered in ((Mode.LOCAL, True), (Mode.SHARED, False)):
        interface = Interface(home, mode)
        shown = interface.open_project("ink")
        assert (path in [value for _, value in shown["plan_base"]["choices"]]) is offered
        assert ("FLUX" in shown["plan_models"]) is offered
        interface.blocks.close(verbose=False)


def test_a_job_that_changes_while_the_plan_is_made_is_shown_by_the_next_tick(
    project: Project, interface: Interface, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    interface.open_project("ink")
    interface.call(PlanTab.update_plan, plan_base="DreamShaper XL")
    folder = JobFolder.create(home.download_of("DreamShaper XL").path, DownloadJob(base="DreamShaper XL"))
    folder.set_status(JobStatus(**running_status(), done=1, total=4))
    rendered = view.base_facts

    def facts_then_stop(base: ChosenBase) -> Markup:
        html = rendered(base)
        folder.set_status(JobStatus(state=JobState.STOPPED, done=1, total=4))
        return html

    monkeypatch.setattr(view, "base_facts", facts_then_stop)
    assert "Downloading" in interface.call(PlanTab.update_plan)["plan_base_facts"]
    monkeypatch.undo()
    shown = interface.call(PlanTab.tick)
    assert "stopped" in shown["plan_base_facts"]
    assert shown["plan_download"]["visible"]
