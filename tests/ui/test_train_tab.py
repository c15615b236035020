"""The Train tab: the form becomes a job, the page shows the events of a run, and only runs of the project are used."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from lora_studio.events import (
    CaptionsEvent,
    HintEvent,
    ImageLossesEvent,
    ResumeEvent,
    SampleEvent,
    TimestepsEvent,
    ValidationEvent,
    WarningEvent,
)
from lora_studio.files import write_json, write_text
from lora_studio.planning.presets import load_preset, own_presets, save_preset
from lora_studio.settings.job_specs import TrainJob, job_to_toml
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.context import NEW_RUN
from lora_studio.ui.plan.tab import PlanTab
from lora_studio.ui.train.control import RunControl
from lora_studio.ui.train.own_presets import PresetFiles
from lora_studio.ui.train.tab import TrainTab
from lora_studio.ui.train.view import ALL_BACK, WITHOUT_SUBSETS
from lora_studio.workspace.job_folder import DATASET_FILE, IMAGE_LOSSES_FILE, JobFolder, JobState
from lora_studio.workspace.project import Home, Project
from tests.support.charts import charts_in, points_of
from tests.support.events import step_event
from tests.support.interface import Interface, error_code
from tests.support.jobs import BASE, LORA, PROMPTS, make_project, make_run, running_status
from tests.support.sample_measures import measures

Started = list[tuple[JobFolder, bool]]


@pytest.fixture
def project(home: Home) -> Project:
    return make_project(home, epochs=3)


def test_the_form_has_the_recipe_of_the_project(project: Project, interface: Interface) -> None:
    shown = interface.open_project("ink")
    assert shown["run"] == NEW_RUN
    assert shown["recipe_epochs"]["value"] == "3"
    assert shown["recipe_unet_lr"]["value"] == "5e-4"
    assert "changed" in shown["recipe_epochs"]["elem_classes"]
    assert "changed" not in shown["recipe_unet_lr"]["elem_classes"]
    assert "Plan: 15" in shown["recipe_epochs"]["info"]
    assert "plan: 15" in shown["train_source"]
    assert shown["train_start"] == {"visible": True, "value": "Start training"}


def test_start_writes_the_job_and_saves_the_recipe(project: Project, interface: Interface, started: Started) -> None:
    interface.open_project("ink")
    shown = interface.call(TrainTab.start_training, recipe_unet_lr="3e-4", recipe_repeats="", train_name="my ink")
    [(folder, resume)] = started
    assert (folder.path, resume) == (project.path / "runs" / "001-my-ink", False)
    job = folder.job()
    assert isinstance(job, TrainJob)
    assert (job.name, job.base, job.trigger_word, job.dataset) == ("my ink", BASE, "inkstamp_hc", project.dataset_dir)
    assert (job.recipe.unet_lr, job.recipe.epochs, job.recipe.repeats) == (3e-4, 3, None)
    assert project.info().recipe == {"unet_lr": 3e-4, "epochs": 3, "repeats": None}
    assert shown["run"] == "001-my-ink"


def test_wrong_values_are_named_and_marked(project: Project, interface: Interface, started: Started) -> None:
    interface.open_project("ink")
    shown = interface.call(TrainTab.start_training, recipe_unet_lr="abc", recipe_batch_size="0")
    assert error_code(shown["train_notice"]) == "config"
    assert shown["train_cards"] == ""
    assert "(unet_lr)" in shown["train_notice"]
    assert "(given: abc)" in shown["train_notice"]
    assert "(batch_size)" in shown["train_notice"]
    assert "wrong" in shown["recipe_unet_lr"]["elem_classes"]
    assert "wrong" not in shown["recipe_epochs"]["elem_classes"]
    assert not started
    assert not project.runs()
    shown = interface.call(TrainTab.start_training, recipe_unet_lr="5e-4", recipe_batch_size="2", train_name="../up")
    assert error_code(shown["train_notice"]) == "config"
    assert not project.runs()


def test_a_project_without_images_cannot_be_trained(home: Home, interface: Interface, started: Started) -> None:
    make_project(home, images=0)
    interface.open_project("ink")
    assert error_code(interface.call(TrainTab.start_training)["train_notice"]) == "no_images"
    assert not started


def test_an_edit_after_a_start_keeps_its_error(project: Project, interface: Interface, started: Started) -> None:
    interface.open_project("ink")
    interface.call(TrainTab.start_training, recipe_unet_lr="abc")
    assert "(unet_lr)" in interface.call(TrainTab.save_edit)["train_notice"]
    assert interface.call(TrainTab.save_edit, recipe_unet_lr="5e-4")["train_notice"] == ""
    assert not started


def test_opening_the_tab_leaves_a_form_of_the_same_plan_alone(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    interface.call(TrainTab.save_edit, recipe_network_dim="77")
    shown = interface.call(TrainTab.tab_selected)
    assert not {name for name in shown if name.startswith("recipe_")} | {"train_tiles", "train_source"} & set(shown)
    interface.call(PlanTab.update_plan, plan_kind="character")
    assert "train_tiles" in interface.call(TrainTab.tab_selected)


def test_a_preset_fills_the_form(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    shown = interface.call(TrainTab.load_preset, train_preset="prodigy", recipe_network_dim="77")
    assert shown["recipe_optimizer"]["value"] == "Prodigy"
    assert "value" not in shown["recipe_network_dim"]
    assert project.info().recipe["network_dim"] == 77
    assert interface.contents_of("train_preset") is None
    assert "recipe_optimizer" not in interface.call(TrainTab.load_preset)
    refused = interface.call(TrainTab.load_preset, train_preset="../x")
    assert error_code(refused["train_notice"]) == "no_preset"


def test_the_form_is_saved_as_a_preset_and_loaded_again(project: Project, interface: Interface, home: Home) -> None:
    interface.open_project("ink")
    shown = interface.call(TrainTab.save_preset, train_preset_name="dim 77", recipe_network_dim="77")
    assert ("dim 77 (yours)", "dim 77") in shown["train_preset"]["choices"]
    assert shown["train_preset_own"]["choices"] == ["dim 77"]
    assert "dim 77" in shown["train_preset_result"]
    interface.call(TrainTab.click_in_source, pick=ALL_BACK)
    assert interface.contents_of("recipe_network_dim") != "77"
    assert interface.call(TrainTab.load_preset, train_preset="dim 77")["recipe_network_dim"]["value"] == "77"
    wrong = interface.call(TrainTab.save_preset, train_preset_name="other", recipe_network_dim="abc")
    assert error_code(wrong["train_notice"]) == "config"
    interface.call(TrainTab.delete_preset, train_preset_own="dim 77", recipe_network_dim="77")
    assert own_presets(home) == []
    assert error_code(interface.call(TrainTab.delete_preset, train_preset_own=None)["train_notice"]) == "no_preset"


def test_presets_are_renamed_exported_and_imported(
    project: Project, interface: Interface, home: Home, tmp_path: Path
) -> None:
    interface.open_project("ink")
    save_preset(home, "dim 77", Recipe(network_dim=77))
    shown = interface.call(PresetFiles.rename_preset, train_preset_own="dim 77", train_preset_name="large")
    assert shown["train_preset_own"]["choices"] == own_presets(home) == ["large"]
    assert ("large (yours)", "large") in shown["train_preset"]["choices"]
    exported = interface.call(PresetFiles.export_preset, train_preset_own="large")["train_preset_exported"]
    assert exported["visible"]
    copy = tmp_path / "copy.toml"
    shutil.copy(exported["value"], copy)
    shown = interface.call(PresetFiles.import_preset, train_preset_import=str(copy))
    assert shown["train_preset_own"]["choices"] == ["copy", "large"]
    assert not shown["train_preset_exported"]["visible"]
    assert load_preset("copy", home) == {"network_dim": 77}
    again = interface.call(PresetFiles.import_preset, train_preset_import=str(copy))
    assert error_code(again["train_notice"]) == "preset_name"
    assert error_code(interface.call(PresetFiles.export_preset, train_preset_own=None)["train_notice"]) == "no_preset"


def test_edits_are_saved_and_kept_when_the_plan_changes(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    interface.call(TrainTab.save_edit, recipe_network_dim="77")
    assert project.info().recipe == {"network_dim": 77, "epochs": 3}
    interface.call(PlanTab.update_plan, plan_kind="concept")
    shown = interface.call(TrainTab.tab_selected, recipe_unet_lr="half typed")
    assert "value" not in shown["recipe_network_dim"]
    assert "value" not in shown["recipe_unet_lr"]
    assert "wrong" in shown["recipe_unet_lr"]["elem_classes"]
    assert "changed" in shown["recipe_network_dim"]["elem_classes"]
    assert shown["recipe_sample_prompts"]["value"] != ""
    assert interface.contents_of("recipe_network_alpha") == "8"
    assert interface.open_project("ink")["recipe_network_dim"]["value"] == "77"


def test_changes_are_taken_back_one_at_a_time_or_all(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    interface.call(TrainTab.save_edit, recipe_network_dim="77", recipe_unet_lr="1e-4")
    shown = interface.call(TrainTab.click_in_source, pick="network_dim")
    assert shown["recipe_network_dim"]["value"] == "32"
    assert "changed" not in shown["recipe_network_dim"]["elem_classes"]
    shown = interface.call(TrainTab.click_in_source, pick="epochs")
    assert shown["recipe_epochs"]["value"] == "15"
    assert project.info().recipe == {"unet_lr": 1e-4}
    shown = interface.call(TrainTab.click_in_source, pick=ALL_BACK)
    assert project.info().recipe == {}
    assert shown["train_tiles"] == interface.contents_of("plan_tiles")


def test_a_run_with_other_settings_becomes_changes_to_the_plan(project: Project, interface: Interface) -> None:
    make_run(project, epochs=2)
    interface.open_project("ink")
    interface.call(TrainTab.select_run, pick="001-ink")
    shown = interface.call(TrainTab.edit_and_rerun)
    assert shown["run"] == NEW_RUN
    assert shown["recipe_epochs"]["value"] == "2"
    assert project.info().recipe["epochs"] == 2
    assert project.info().recipe["sample_prompts"] == PROMPTS


def test_the_form_is_found_again_as_it_was_left(project: Project, interface: Interface) -> None:
    make_run(project)
    interface.open_project("ink")
    interface.call(TrainTab.open_form)
    interface.call(TrainTab.select_run, pick="001-ink")
    shown = interface.call(TrainTab.open_form, recipe_network_dim="77")
    assert shown["run"] == NEW_RUN
    assert "recipe_network_dim" not in shown
    assert "77" in shown["train_source"]


def test_wrong_values_leave_no_figures_of_an_earlier_recipe(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    shown = interface.call(TrainTab.save_edit, recipe_batch_size="0")
    assert error_code(shown["train_notice"]) == "config"
    assert not any(character.isdigit() for character in shown["train_tiles"])
    assert project.info().recipe == {"epochs": 3}


def test_the_runs_table_names_a_changed_base_and_trigger_word(project: Project, interface: Interface) -> None:
    first, second = make_run(project), make_run(project)
    job = second.job()
    assert isinstance(job, TrainJob)
    changed = job.model_copy(update={"base": "Pony V6 XL", "trigger_word": "ink_two", "parent": first.path})
    write_text(second.job_file, job_to_toml(changed))
    runs = interface.open_project("ink")["train_runs"]
    assert f"Base: {BASE} → Pony V6 XL" in runs
    assert "inkstamp_hc → ink_two" in runs


def test_a_failed_run_says_once_why(project: Project, interface: Interface) -> None:
    folder = make_run(project, steps=0, epochs=1, final=False, state=JobState.FAILED, message="The VAE is missing.")
    interface.open_project("ink")
    shown = interface.call(TrainTab.select_run, pick=folder.name)
    page = "".join(str(value) for name, value in shown.items() if name != "train_title")
    assert page.count("The VAE is missing.") == 1
    assert "will appear here" not in shown["train_curve"]
    assert shown["train_film"] == ""


def test_an_active_run_shows_its_figures(project: Project, interface: Interface) -> None:
    make_run(project, final=False, **running_status())
    shown = interface.open_project("ink")
    assert shown["run"] == "001-ink"
    assert "8 / 8" in shown["train_tiles"]
    assert "epoch 2 of 2" in shown["train_tiles"]
    assert points_of(charts_in(shown["train_curve"])["Loss"], "each step")[-1] == (8, 0.125)
    assert shown["train_stop"]["visible"]
    assert not shown["train_resume"]["visible"]


def test_a_tick_shows_new_steps_only(project: Project, interface: Interface) -> None:
    folder = make_run(project, final=False, **running_status())
    interface.open_project("ink")
    assert interface.call(TrainTab.tick) == {}
    folder.emit(step_event(9, total=10, epoch=2, loss=0.05, lr=1e-4, seconds=0.5))
    assert "9 / 10" in interface.call(TrainTab.tick)["train_tiles"]


def test_stop_and_resume(project: Project, interface: Interface, started: Started) -> None:
    folder = make_run(project, final=False, **running_status())
    interface.open_project("ink")
    shown = interface.call(RunControl.stop_training)
    assert folder.stop_requested()
    assert not shown["train_stop"]["interactive"]
    assert error_code(interface.call(RunControl.resume_training)["train_notice"]) == "busy"
    folder.update_status(state=JobState.STOPPED, message="Stopped; everything up to here is kept.")
    assert interface.call(TrainTab.tick)["train_resume"] == {"visible": True}
    interface.call(RunControl.resume_training)
    assert started == [(folder, True)]


def test_samples_are_drawn_on_request(project: Project, interface: Interface) -> None:
    folder = make_run(project, final=False, **running_status())
    assert interface.open_project("ink")["train_sample"] == {
        "visible": True,
        "interactive": True,
        "value": "Sample now",
    }
    shown = interface.call(RunControl.sample_now)
    assert folder.samples_requested()
    assert not shown["train_sample"]["interactive"]
    folder.clear_sample_request()
    assert interface.call(TrainTab.tick)["train_sample"]["interactive"]
    folder.update_status(state=JobState.STOPPED)
    assert interface.call(TrainTab.tick)["train_sample"] == {"visible": False}
    assert error_code(interface.call(RunControl.sample_now)["train_notice"]) == "not_running"
    assert not folder.samples_requested()


def test_samples_say_what_they_were_drawn_with(project: Project, interface: Interface) -> None:
    folder = make_run(project)
    used = {"negative_prompt": "<blurry>", "width": 832, "height": 1216, "steps": 9, "guidance": 4.5, "sampler": "ddim"}
    folder.emit(SampleEvent(step=0, epoch=None, index=7, prompt="a cat", seed=5, path="samples/x.png", **used))
    interface.open_project("ink")
    film = interface.call(TrainTab.select_run, pick=folder.name)["train_film"]
    assert "&lt;blurry&gt;" in film
    assert "832 × 1216 px · seed 5 · 9 steps · CFG 4.5 · ddim" in film


def test_earlier_verdicts_are_not_shown(project: Project, interface: Interface) -> None:
    folder = make_run(project)
    folder.emit(HintEvent(code="too_short", message="A stale hint", why=""))
    folder.emit(WarningEvent(code="odd", message="One <i>warning</i>", why="It matters."))
    interface.open_project("ink")
    cards = interface.call(TrainTab.select_run, pick="001-ink")["train_cards"]
    assert "A stale hint" not in cards
    assert "One &lt;i&gt;warning&lt;/i&gt;" in cards


def test_hints_on_the_recipe_and_losses_by_timestep_are_shown(project: Project, interface: Interface) -> None:
    folder = make_run(project)
    folder.emit(HintEvent(about="recipe", code="schedule_free", message="Set lr_scheduler to constant.", why="So."))
    bins = [[0, 500], [500, 1000]]
    folder.emit(TimestepsEvent(epoch=1, bins=bins, loss=[0.4, None], count=[3, 0]))
    folder.emit(TimestepsEvent(epoch=2, bins=bins, loss=[0.2, 0.05], count=[2, 1]))
    interface.open_project("ink")
    shown = interface.call(TrainTab.select_run, pick="001-ink")
    assert "Set lr_scheduler to constant." in shown["train_cards"]
    drawn = charts_in(shown["train_curve"])["Loss by timestep"]
    assert points_of(drawn, "epoch 2") == [(0, 0.2), (1, 0.05)]
    assert points_of(drawn, "epoch 1") == [(0, 0.4), (1, None)]
    assert [item["text"] for item in drawn["x"]["named"]] == ["timesteps 0 to 499", "timesteps 500 to 999"]


def test_a_copied_training_image_is_shown_beside_the_sample(project: Project, interface: Interface) -> None:
    folder = make_run(project)
    folder.emit(measures(0, indices=[0], nearest=["/set/b.png"], nearest_ratio=[1.0]))
    nearest = [str(project.images_dir / "<b>0.png"), "/set/b.png"]
    Image.new("RGB", (64, 64)).save(nearest[0])
    folder.emit(measures(2, indices=[0, 1], nearest=nearest, nearest_ratio=[0.1, 0.9], features="thumbnails"))
    interface.open_project("ink")
    shown = interface.call(TrainTab.select_run, pick=folder.name)
    film = shown["train_film"]
    assert film.count('<div class="copy"') == 1
    assert "&lt;b&gt;0.png: 10% as far as usual" in film
    assert "no tagger has tagged them" in film
    assert "Samples copy a training image" in shown["train_cards"]
    folder.emit(ResumeEvent(step=1))
    shown = interface.call(TrainTab.select_run, pick=folder.name)
    assert "Samples copy" not in shown["train_cards"]
    assert '<div class="copy"' not in shown["train_film"]


def test_images_are_shown_worst_first_with_their_loss_and_caption(project: Project, interface: Interface) -> None:
    folder = make_run(project)
    interface.open_project("ink")
    assert not interface.call(TrainTab.select_run, pick="001-ink")["train_images"]
    Image.new("RGB", (64, 64)).save(project.images_dir / "0.png")
    images = [str(project.images_dir / name) for name in ("0.png", "gone <b>.png", "new.png")]
    figures = [{"ratio": 1.314, "significant": True, "relative_loss": 0.92}, {"ratio": 1.05}, {"ratio": 9.0}]
    entries = [
        {"image": image, "samples": samples, "loss": 0.1, **figure}
        for image, samples, figure in zip(images, (10, 8, 2), figures, strict=True)
    ]
    write_json(folder.path / IMAGE_LOSSES_FILE, {"epoch": 1, "images": entries})
    record = {"path": images[0], "caption": "a <i>stamp</i>", "sha256": "0"}
    write_text(folder.path / DATASET_FILE, json.dumps(record) + "\n")
    folder.emit(ImageLossesEvent(epoch=1, file=IMAGE_LOSSES_FILE, worst=images[:2], ratios=[1.314, 1.05]))
    shown = interface.call(TrainTab.select_run, pick="001-ink")["train_images"]
    assert "0.92 of the base&#39;s loss, +31% against all images, over 10 draws" in shown
    assert "a &lt;i&gt;stamp&lt;/i&gt;" in shown
    assert "gone &lt;b&gt;.png" in shown
    assert "new.png" not in shown
    assert shown.count("popovertarget=") == 2
    assert shown.count("significant") == 1


def test_a_finished_run_offers_its_file_and_a_test(project: Project, interface: Interface) -> None:
    run = make_run(project)
    project.save_info(project.info().model_copy(update={"recipe": {}}))
    shown = interface.open_project("ink")
    assert shown["train_test"] == {"visible": True, "variant": "primary"}
    assert str(run.path / "ink.safetensors") in shown["train_path"]


def test_only_runs_of_the_project_are_used(project: Project, home: Home, interface: Interface) -> None:
    other = make_project(home, "other")
    foreign = make_run(other, **running_status())
    interface.open_project("ink")
    for name in ("001-ink", "../../other/runs/001-ink", str(foreign.path), "", "x" * 5000):
        for handler in (RunControl.stop_training, RunControl.resume_training, TrainTab.edit_and_rerun):
            shown = interface.call(handler, run=name)
            assert error_code(shown["train_notice"]) == "no_run", (handler, name[:40])
        assert error_code(interface.call(TrainTab.select_run, pick=name)["train_notice"]) == "no_run"
    assert not foreign.stop_requested()


def test_validation_losses_and_captions_are_shown(project: Project, interface: Interface) -> None:
    folder = make_run(project)
    folder.emit(ValidationEvent(step=2, epoch=1, loss=0.123))
    folder.emit(CaptionsEvent(file="captions.jsonl", examples=["inkstamp_hc, <b>thing</b>", ""]))
    interface.open_project("ink")
    shown = interface.call(TrainTab.select_run, pick=folder.name)
    drawn = charts_in(shown["train_curve"])["Loss"]
    assert points_of(drawn, "validation") == [(2, 0.123)]
    details = "".join(str(value) for value in shown.values())
    assert "<li>inkstamp_hc, &lt;b&gt;thing&lt;/b&gt;</li><li>(empty)</li>" in details


def test_a_regularisation_folder_is_written_to_the_job_or_refused(
    project: Project, interface: Interface, started: Started, tmp_path: Path
) -> None:
    interface.open_project("ink")
    shown = interface.call(TrainTab.start_training, train_regularization=str(tmp_path / "nowhere"))
    assert error_code(shown["train_notice"]) == "no_folder"
    assert not started
    shown = interface.call(TrainTab.save_edit, train_regularization=str(tmp_path / "nowhere"))
    assert error_code(shown["train_notice"]) == "no_folder"
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


@pytest.mark.slow
def test_other_files_are_written_to_the_job_and_filled_in_again(
    project: Project, interface: Interface, started: Started, tmp_path: Path
) -> None:
    interface.open_project("ink")
    lora = tmp_path / "older.safetensors"
    shutil.copyfile(LORA, lora)
    files = {"train_network_weights": str(lora), "train_vae": " owner/vae "}
    interface.call(TrainTab.start_training, recipe_network_dim="8", **files)
    [(folder, _)] = started
    job = folder.job()
    assert isinstance(job, TrainJob)
    assert (job.network_weights, job.vae, job.regularization, job.num_processes) == (lora, "owner/vae", None, 1)
    interface.open_project("ink")
    interface.call(TrainTab.select_run, pick=folder.name)
    shown = interface.call(TrainTab.edit_and_rerun)
    assert (shown["train_network_weights"], shown["train_vae"]) == (str(lora), "owner/vae")


def test_import_fills_the_form_and_lists_what_is_missing(
    project: Project, interface: Interface, started: Started, tmp_path: Path
) -> None:
    interface.open_project("ink")
    file = tmp_path / "kohya.json"
    form = {"LoRA_type": "Standard", "network_dim": 20, "unet_lr": 3e-4, "text_encoder_lr": 0, "color_aug": True}
    file.write_text(json.dumps(form | {"caption_prefix": "by ohwx,", "pretrained_model_name_or_path": "other/base"}))
    shown = interface.call(TrainTab.import_upload, train_import=str(file))
    assert (shown["recipe_network_dim"]["value"], shown["recipe_unet_lr"]["value"]) == ("20", "3e-4")
    assert "changed" in shown["recipe_network_dim"]["elem_classes"]
    assert "color_aug" in shown["train_exchanged"]
    assert "other/base" in shown["train_exchanged"]
    assert project.info().recipe["network_dim"] == 20
    interface.call(TrainTab.start_training)
    job = started[0][0].job()
    assert isinstance(job, TrainJob)
    assert (job.base, job.recipe.network_dim, job.recipe.caption_prefix) == (BASE, 20, "by ohwx,")


def test_imported_subsets_are_shown_trained_and_removed(
    project: Project, interface: Interface, started: Started, tmp_path: Path
) -> None:
    name = project.images_dir.name
    for folder in (name, "elsewhere"):
        (tmp_path / folder).mkdir()
    file = tmp_path / "dataset.toml"
    file.write_text(
        f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{name}'\nnum_repeats = 7\nshuffle_caption = true\n"
        "[[datasets.subsets]]\nimage_dir = 'elsewhere'\n"
    )
    interface.open_project("ink")
    shown = interface.call(TrainTab.import_path, train_import_path=str(file))
    assert f"{name}: 7 repeats, shuffle_caption" in shown["train_source"]
    assert "elsewhere" in shown["train_exchanged"]
    interface.call(TrainTab.start_training)
    job = started[0][0].job()
    assert isinstance(job, TrainJob)
    (subset,) = job.subsets
    assert (subset.image_dir, subset.num_repeats) == (project.images_dir, 7)
    assert subset.settings == {"shuffle_caption": True}
    interface.call(TrainTab.open_form)
    shown = interface.call(TrainTab.click_in_source, pick=WITHOUT_SUBSETS)
    assert "Subsets" not in shown["train_source"]
    assert project.info().subsets == []


def test_a_file_without_settings_changes_nothing(project: Project, interface: Interface, tmp_path: Path) -> None:
    interface.open_project("ink")
    before = project.info()
    (tmp_path / "a.json").write_text("{}")
    shown = interface.call(TrainTab.import_upload, train_import=str(tmp_path / "a.json"))
    assert error_code(shown["train_notice"]) == "no_settings"
    assert project.info() == before


def test_export_writes_the_settings_of_the_form(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    shown = interface.call(TrainTab.export, recipe_network_dim="24", train_name="my ink")
    file = project.path / "exports" / "001" / "my ink.toml"
    assert str(file) in shown["train_exchanged"]
    values = tomllib.loads(file.read_text())
    assert (values["network_dim"], values["output_name"]) == (24, "my ink")
    (dataset,) = tomllib.loads(Path(values["dataset_config"]).read_text())["datasets"]
    assert [subset["image_dir"] for subset in dataset["subsets"]] == [str(project.images_dir)]
    assert Path(shown["train_exported"]["value"]).read_text() == file.read_text()
    shown = interface.call(TrainTab.export, recipe_network_dim="-1")
    assert error_code(shown["train_notice"]) == "config"
    assert not (project.path / "exports" / "002").exists()
