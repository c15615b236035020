"""Train: the form becomes a job, a run's events become what is shown, and only runs of the project are touched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.context import NEW_RUN
from lora_studio.ui.train.tab import TrainTab
from lora_studio.ui.widgets.charts import loss_curve, timestep_chart
from lora_studio.ui.widgets.setting_spec import SettingSpec
from lora_studio.ui.widgets.settings_form import RecipeForm
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home, Project
from tests.support.interface import Interface
from tests.support.jobs import BASE, at_work, make_project, make_run

Started = list[tuple[JobFolder, bool]]


@pytest.fixture
def project(home: Home) -> Project:
    return make_project(home, recipe=Recipe(epochs=3))


def form_of(interface: Interface) -> RecipeForm:
    """The form of the Train tab."""
    return next(
        block.fn.__self__.form
        for block in interface.blocks.fns.values()
        if getattr(block.fn, "__qualname__", "") == TrainTab.tick.__qualname__
    )


def test_the_form_holds_the_projects_recipe(project: Project, interface: Interface) -> None:
    shown = interface.open("ink")
    assert shown["run"] == NEW_RUN
    assert shown["recipe_epochs"]["value"] == "3"
    assert shown["recipe_unet_lr"]["value"] == "5e-4"
    assert "changed" in shown["recipe_epochs"]["elem_classes"]
    assert "Default: 10" in shown["recipe_epochs"]["info"]
    assert shown["train_start"] == {"visible": True}


def test_start_writes_the_job_and_remembers_the_recipe(
    project: Project, interface: Interface, started: Started
) -> None:
    interface.open("ink")
    shown = interface.call(TrainTab.start_training, recipe_unet_lr="3e-4", recipe_repeats="", train_name="my ink")
    [(folder, resume)] = started
    assert (folder.path, resume) == (project.path / "runs" / "001-my-ink", False)
    job = folder.job()
    assert isinstance(job, TrainJob)
    assert (job.name, job.base, job.trigger_word, job.dataset) == ("my ink", BASE, "inkstamp_hc", project.dataset_dir)
    assert (job.recipe.unet_lr, job.recipe.epochs, job.recipe.repeats) == (3e-4, 3, None)
    assert project.info().recipe == job.recipe
    assert shown["run"] == "001-my-ink"


def test_wrong_values_are_named_and_marked(project: Project, interface: Interface, started: Started) -> None:
    interface.open("ink")
    shown = interface.call(TrainTab.start_training, recipe_unet_lr="abc", recipe_batch_size="0")
    assert "2 settings to correct" in shown["train_notice"]
    assert "UNet learning rate (unet_lr)" in shown["train_notice"]
    assert "(given: abc)" in shown["train_notice"]
    assert "Batch size (batch_size)" in shown["train_notice"]
    assert "wrong" in shown["recipe_unet_lr"]["elem_classes"]
    assert "wrong" not in shown["recipe_epochs"]["elem_classes"]
    assert not started
    assert not project.runs()
    shown = interface.call(TrainTab.start_training, recipe_unet_lr="5e-4", recipe_batch_size="2", train_name="../up")
    assert "name" in shown["train_notice"]
    assert not project.runs()


def test_a_wrong_value_is_marked_while_it_is_typed(project: Project, interface: Interface) -> None:
    form = form_of(interface)
    update = form.validate_field("unet_lr", "fast")
    assert "should be a number" in update["info"]
    assert "wrong" in update["elem_classes"]
    assert "changed" in form.validate_field("unet_lr", "1e-3")["elem_classes"]
    assert form.validate_field("unet_lr", "0.0005")["elem_classes"] == ["field"]


def test_what_does_nothing_is_not_shown(project: Project, interface: Interface) -> None:
    """Unless it is looked for; a preset or another run that needs it shows it."""
    interface.open("ink")
    form = form_of(interface)

    def found(text: str) -> dict[str, bool]:
        data = {component: interface.contents[component._id] for component in form.inputs} | {form.search: text}
        updates = form.search_settings(data)
        return {name: updates[component]["visible"] for name, component in form.components.items()}

    assert not form.components["lr_scheduler_num_cycles"].visible
    assert form.update_dependents("lr_scheduler", "cosine_with_restarts", "3", "1")[0]["visible"]
    assert [update["visible"] for update in form.update_dependents("lr_scheduler", "cosine", "5", "1")] == [True, False]
    assert not found("")["lr_scheduler_num_cycles"]
    assert found("")["min_bucket_reso"]
    assert found("restarts")["lr_scheduler_num_cycles"]
    assert not found("restarts")["min_bucket_reso"]
    filled = form.fill(dict(Recipe(lr_scheduler="cosine_with_restarts", enable_bucket=False)))
    assert filled[form.components["lr_scheduler_num_cycles"]]["visible"]
    assert not filled[form.components["min_bucket_reso"]]["visible"]


@pytest.mark.parametrize("name", Recipe.model_fields)
def test_a_setting_depends_on_one_that_is_there(name: str) -> None:
    spec = SettingSpec.of(Recipe, name)
    if spec.depends_on:
        master = SettingSpec.of(Recipe, spec.depends_on)
        assert not spec.simple
        assert set(spec.depends_on_values) <= set(master.choices)
        assert not master.master


def test_a_project_without_images_cannot_be_trained(home: Home, interface: Interface, started: Started) -> None:
    make_project(home, images=0)
    interface.open("ink")
    assert "has no images yet" in interface.call(TrainTab.start_training)["train_notice"]
    assert not started


def test_a_preset_fills_the_form(project: Project, interface: Interface) -> None:
    interface.open("ink")
    shown = interface.call(TrainTab.load_settings, train_source="prodigy")
    assert shown["recipe_optimizer"]["value"] == "Prodigy"
    assert "There is no preset" in interface.call(TrainTab.load_settings, train_source="../x")["train_notice"]


def test_a_run_at_work_shows_its_figures(project: Project, interface: Interface) -> None:
    make_run(project, final=False, **at_work())
    shown = interface.open("ink")
    assert shown["run"] == "001-ink"
    assert "8 / 8" in shown["train_tiles"]
    assert "epoch 2 of 2" in shown["train_tiles"]
    assert "Loss over 8 of 8 steps" in shown["train_curve"]
    assert shown["train_stop"]["visible"]
    assert not shown["train_resume"]["visible"]


def test_a_tick_shows_new_steps_only(project: Project, interface: Interface) -> None:
    folder = make_run(project, final=False, **at_work())
    interface.open("ink")
    assert interface.call(TrainTab.tick) == {}
    folder.emit("step", step=9, total=10, epoch=2, loss=0.05, lr=1e-4, seconds=0.5)
    assert "9 / 10" in interface.call(TrainTab.tick)["train_tiles"]


def test_stop_asks_and_resume_goes_on(project: Project, interface: Interface, started: Started) -> None:
    folder = make_run(project, final=False, **at_work())
    interface.open("ink")
    shown = interface.call(TrainTab.stop_training)
    assert folder.stop_requested()
    assert not shown["train_stop"]["interactive"]
    assert "at work already" in interface.call(TrainTab.resume_training)["train_notice"]
    folder.update_status(state=JobState.STOPPED, message="Stopped; everything up to here is kept.")
    assert interface.call(TrainTab.tick)["train_resume"] == {"visible": True}
    interface.call(TrainTab.resume_training)
    assert started == [(folder, True)]


def test_an_earlier_hint_gives_way_to_the_verdict_that_holds(project: Project, interface: Interface) -> None:
    folder = make_run(project)
    folder.emit("hint", code="too_short", message="A stale hint", why="")
    folder.emit("warning", code="odd", message="One <i>warning</i>", why="It matters.")
    interface.open("ink")
    cards = interface.call(TrainTab.select_run, pick="001-ink")["train_cards"]
    assert "A stale hint" not in cards
    assert "One &lt;i&gt;warning&lt;/i&gt;" in cards


def test_what_a_run_says_of_its_recipe_and_its_timesteps_is_shown(project: Project, interface: Interface) -> None:
    folder = make_run(project)
    folder.emit("hint", about="recipe", code="schedule_free", message="Set lr_scheduler to constant.", why="So.")
    bins = [[0, 500], [500, 1000]]
    folder.emit("timesteps", epoch=1, bins=bins, loss=[0.4, None], count=[3, 0])
    folder.emit("timesteps", epoch=2, bins=bins, loss=[0.2, 0.05], count=[2, 1])
    interface.open("ink")
    shown = interface.call(TrainTab.select_run, pick="001-ink")
    assert "Set lr_scheduler to constant." in shown["train_cards"]
    assert "Mean loss of epoch 2 by timestep. 0 to 499: 0.200, 500 to 999: 0.050." in shown["train_curve"]


def test_bars_stand_for_mean_losses_by_timestep() -> None:
    drawn = timestep_chart([[0, 500], [500, 1000]], [0.1, 0.2], [0.4, None], epoch=3)
    bars = re.findall(r'<rect class="bar" x="([\d.]+)" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"/>', drawn)
    assert [tuple(map(float, bar)) for bar in bars] == [(7.5, 75, 25), (57.5, 50, 50)]
    assert re.findall(r'class="line raw" d="([^"]*)"', drawn) == ["M0 0h50"]
    assert timestep_chart([[0, 10]], [None], [None], epoch=1) == ""


def test_a_finished_run_offers_its_file_and_the_test(project: Project, interface: Interface) -> None:
    run = make_run(project)
    project.save_info(project.info().model_copy(update={"recipe": None}))
    shown = interface.open("ink")
    assert shown["train_test"] == {"visible": True}
    assert str(run.path / "ink.safetensors") in shown["train_path"]


def test_only_runs_of_the_project_are_touched(project: Project, home: Home, interface: Interface) -> None:
    other = make_project(home, "other")
    foreign = make_run(other, **at_work())
    interface.open("ink")
    for name in ("001-ink", "../../other/runs/001-ink", str(foreign.path), "", "x" * 5000):
        for handler in (TrainTab.stop_training, TrainTab.resume_training, TrainTab.edit_and_rerun):
            assert "There is no run" in interface.call(handler, run=name)["train_notice"], (handler, name[:40])
        assert "There is no run" in interface.call(TrainTab.select_run, pick=name)["train_notice"]
    assert not foreign.stop_requested()


@pytest.mark.parametrize("steps_per_epoch", [3, 10, 40, 51])
def test_epochs_are_marked_within_the_curve(steps_per_epoch: int) -> None:
    drawn = loss_curve([1, 2], [1.2, 1.0], [1.2, 1.1], total=40, steps_per_epoch=steps_per_epoch)
    marks = [float(place) for place in re.findall(r'class="tick x" style="left:([\d.]+)%"', drawn)]
    assert all(0 < place <= 100 for place in marks)
    assert bool(marks) == (steps_per_epoch <= 40)


def test_held_out_losses_are_a_line_of_their_own(project: Project, interface: Interface) -> None:
    plain = loss_curve([1, 2], [1.2, 1.0], [1.2, 1.1], total=4, steps_per_epoch=2)
    assert "held" not in plain
    drawn = loss_curve([1, 2], [1.2, 1.0], [1.2, 1.1], total=4, steps_per_epoch=2, validation=[(0, 2.0), (2, 0.5)])
    assert "held-out loss 0.5000" in drawn
    path = re.search(r'class="line held" d="M0 (\S+)L50 (\S+)"', drawn)
    assert path is not None
    assert 0 <= float(path[1]) < float(path[2]) <= 100
    folder = make_run(project)
    folder.emit("validation", step=2, epoch=1, loss=0.123)
    folder.emit("captions", file="captions.jsonl", examples=["inkstamp_hc, <b>thing</b>", ""])
    interface.open("ink")
    shown = interface.call(TrainTab.select_run, pick=folder.name)
    assert "held-out loss 0.1230" in shown["train_curve"]
    details = "".join(str(value) for value in shown.values())
    assert "<li>inkstamp_hc, &lt;b&gt;thing&lt;/b&gt;</li><li>(none)</li>" in details


def test_a_regularisation_folder_goes_into_the_job_or_is_refused(
    project: Project, interface: Interface, started: Started, tmp_path: Path
) -> None:
    interface.open("ink")
    shown = interface.call(TrainTab.start_training, train_regularization=str(tmp_path / "nowhere"))
    assert "There is no folder" in shown["train_notice"]
    assert not started
    shown = interface.call(TrainTab.update_estimate, train_regularization=str(tmp_path / "nowhere"))
    assert "There is no folder" in shown["train_cards"]
    (tmp_path / "prior").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "prior" / "a.png")
    interface.call(
        TrainTab.start_training, train_regularization=f" {tmp_path / 'prior'} ", recipe_max_token_length="150"
    )
    [(folder, _)] = started
    job = folder.job()
    assert isinstance(job, TrainJob)
    assert job.regularization == tmp_path / "prior"
    assert job.recipe.max_token_length == 150


def test_other_files_go_into_the_job_and_come_back(
    project: Project, interface: Interface, started: Started, tmp_path: Path
) -> None:
    interface.open("ink")
    lora = tmp_path / "older.safetensors"
    interface.call(TrainTab.start_training, train_network_weights=str(lora), train_vae=" owner/vae ")
    [(folder, _)] = started
    job = folder.job()
    assert isinstance(job, TrainJob)
    assert (job.network_weights, job.vae, job.regularization, job.num_processes) == (lora, "owner/vae", None, 1)
    interface.open("ink")
    interface.call(TrainTab.select_run, pick=folder.name)
    shown = interface.call(TrainTab.edit_and_rerun)
    assert (shown["train_network_weights"], shown["train_vae"]) == (str(lora), "owner/vae")
