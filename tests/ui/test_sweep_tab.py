"""The Test tab: settings become a job, finished images become a grid, and only files of the project are used."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from lora_studio.settings.changes import setting_changes
from lora_studio.settings.job_specs import SweepJob, TrainJob
from lora_studio.settings.values import format_value
from lora_studio.ui.context import EditedRun
from lora_studio.ui.server import Mode
from lora_studio.ui.sweep.tab import SweepTab
from lora_studio.ui.train.tab import TrainTab
from lora_studio.workspace.cell_stars import starred_cells
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home, Project
from tests.support.charts import charts_in, points_of
from tests.support.interface import Interface, error_code
from tests.support.jobs import BASE, LORA, PROMPTS, make_project, make_run, make_sweep, running_status

SETTLED_MS = 1_000  # after which an answer that was on its way has come
Started = list[tuple[JobFolder, bool]]


@pytest.fixture
def project(home: Home) -> Project:
    project = make_project(home)
    make_run(project)
    return project


def test_without_a_lora_it_leads_to_train(home: Home, interface: Interface) -> None:
    make_project(home)
    shown = interface.open_project("ink")
    assert shown["test_loras"] == {"choices": [], "value": []}
    button = next(block for block in interface.blocks.blocks.values() if getattr(block, "value", "") == "Open Train")
    assert shown[f"#{button.parent.parent._id}"] == {"visible": True}


def test_the_form_has_the_sample_prompts_without_their_options(home: Home, interface: Interface) -> None:
    lines = ["{trigger}, face --n blue --s 5", "{trigger}, face --d 3", "# more", "clock"]
    make_project(home, "other", sample_prompts=lines, sample_negative_prompt="blurry")
    shown = interface.open_project("other")
    assert shown["test_prompts"]["value"] == "{trigger}, face\nclock"
    assert shown["test_negative_prompt"]["value"] == "blurry"


def test_the_form_is_filled_from_the_latest_run(project: Project, interface: Interface) -> None:
    shown = interface.open_project("ink")
    assert [label for label, _ in shown["test_loras"]["choices"]] == [
        "001-ink · final",
        "001-ink · epoch 2",
        "001-ink · epoch 1",
    ]
    assert shown["test_loras"]["value"] == ["001-ink/ink.safetensors"]
    assert shown["test_bases"] == [BASE]
    assert shown["test_prompts"]["value"] == "\n".join(PROMPTS)
    assert shown["test_strengths"]["value"] == "0, 0.7, 0.8, 0.9, 1, 1.1, 1.2"
    assert 'class="card empty"' in shown["test_grid"]


def test_make_the_grid_starts_a_sweep(project: Project, interface: Interface, started: Started) -> None:
    interface.open_project("ink")
    shown = interface.call(
        SweepTab.start_sweep,
        test_loras=["001-ink/ink.safetensors", "001-ink/checkpoints/ink-000001.safetensors"],
        test_prompts="{trigger}, cat\n\n  dog  ",
        test_strengths="0, 0.5, 1",
        test_seeds="7, 9",
        test_width="64",
    )
    assert shown["test_notice"] == ""
    [(folder, resume)] = started
    assert (folder.path, resume) == (project.path / "sweeps" / "001", False)
    job = folder.job()
    assert isinstance(job, SweepJob)
    run = project.runs()[0].path
    assert job.loras == [run / "ink.safetensors", run / "checkpoints" / "ink-000001.safetensors"]
    assert (job.prompts, job.strengths, job.bases) == (["{trigger}, cat", "dog"], [0, 0.5, 1], [BASE])
    assert (job.seeds, job.width, job.height, job.steps) == ([7, 9], 64, None, 25)


def test_only_loras_of_the_project_can_be_tested(project: Project, interface: Interface, started: Started) -> None:
    interface.open_project("ink")
    foreign: list[object] = [["../../../etc/passwd"], ["001-ink/../001-ink/ink.safetensors"], ["001-ink/job.toml"]]
    foreign += [[{"path": "x"}], [7], "001-ink/ink.safetensors", [], None]
    for given in foreign:
        shown = interface.call(SweepTab.start_sweep, test_loras=given)
        assert error_code(shown["test_notice"]) == "no_lora", given
    assert not started
    assert not project.sweeps()


def test_a_lora_that_is_gone_is_named_and_deselected(project: Project, interface: Interface, started: Started) -> None:
    interface.open_project("ink")
    final = project.runs()[0].path / "ink.safetensors"
    both = ["001-ink/ink.safetensors", "001-ink/checkpoints/ink-000001.safetensors"]
    final.unlink()
    assert "001-ink/ink.safetensors" in interface.call(SweepTab.update_cell_count, test_loras=both)["test_count"]
    shown = interface.call(SweepTab.start_sweep)
    assert error_code(shown["test_notice"]) == "no_lora"
    assert "001-ink/ink.safetensors" in shown["test_notice"]
    assert shown["test_loras"]["value"] == both[1:]
    assert [label for label, _ in shown["test_loras"]["choices"]] == ["001-ink · epoch 2", "001-ink · epoch 1"]
    interface.call(SweepTab.start_sweep)
    assert len(started) == 1


@pytest.mark.slow
def test_switching_projects_with_a_chosen_lora_shows_no_error(open_page: Callable[..., Any], running: Any) -> None:
    """The page sends the LoRA of the project before, which the other one lacks."""
    running.home.create_project("other")
    make_run(make_project(running.home))
    page = open_page()
    page.get_by_role("tab", name="4 · Test").click()
    page.locator("#test-count").get_by_text("images").wait_for()
    for name, shown in (("other", page.get_by_role("button", name="Open Train")), ("ink", page.locator("#test-start"))):
        page.locator("#project input").click()
        page.get_by_role("option", name=name, exact=True).click()
        shown.wait_for()
    page.locator("#test-count").get_by_text("images").wait_for()
    assert page.locator(".toast-body").count() == 0


def test_a_wrong_setting_is_named_and_marked(project: Project, interface: Interface, started: Started) -> None:
    for box, content in [
        ("test_strengths", "0, abc"),
        ("test_strengths", "9"),
        ("test_strengths", ""),
        ("test_prompts", "  \n "),
        ("test_guidance", "high"),
        ("test_seeds", "-1"),
        ("test_width", "100"),
    ]:
        interface.open_project("ink")
        shown = interface.call(SweepTab.start_sweep, **{box: content})
        assert error_code(shown["test_notice"]) == "config"
        assert f"({box.removeprefix('test_')}): " in shown["test_notice"]
        assert shown["test_notice"].count("given:") == 1, box
        assert "wrong" in shown[box]["elem_classes"], box
    assert not started
    assert not project.sweeps()


def test_no_base_is_an_error(project: Project, interface: Interface, started: Started) -> None:
    interface.open_project("ink")
    assert error_code(interface.call(SweepTab.start_sweep, test_bases=[" "])["test_notice"]) == "no_base"
    assert not started


def test_the_form_is_filled_with_what_the_base_needs(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    shown = interface.call(SweepTab.bases_chosen, test_bases=["Pony V6 XL"], test_guidance="7")
    assert (shown["test_sampler"]["value"], shown["test_quality_tags"]["value"]) == ("euler_a", True)
    assert shown["test_negative_prompt"]["value"].startswith("score_6")
    assert "test_guidance" not in shown  # the user's own
    shown = interface.call(SweepTab.bases_chosen, test_bases=["Pony V6 XL", "SDXL 1.0"])
    assert shown["test_negative_prompt"]["value"] == "auto"
    shown = interface.call(SweepTab.bases_chosen, test_bases=["SDXL 1.0"])
    assert (shown["test_sampler"]["value"], shown["test_quality_tags"]["value"]) == ("euler", False)


def test_prompt_sets_are_added_with_one_click(project: Project, interface: Interface) -> None:
    shown = interface.open_project("ink")
    assert "for a style" in shown["test_prompt_sets"]
    shown = interface.call(SweepTab.add_prompts, pick="Without the trigger word")
    lines = shown["test_prompts"]["value"].splitlines()
    assert lines[: len(PROMPTS)] == PROMPTS
    assert not any("{trigger}" in line for line in lines[len(PROMPTS) :])
    assert f"{7 * len(lines)} images" in shown["test_count"]
    everything = interface.call(SweepTab.add_prompts, pick="all")["test_prompts"]["value"].splitlines()
    assert len(everything) == len(set(everything)) > 10
    assert interface.call(SweepTab.add_prompts, pick="all")["test_prompts"]["value"].splitlines() == everything
    assert error_code(interface.call(SweepTab.add_prompts, pick="../x")["test_notice"]) == "no_set"


def test_a_base_that_does_not_exist_is_an_error_before_anything_is_drawn(
    project: Project, interface: Interface, started: Started
) -> None:
    interface.open_project("ink")
    shown = interface.call(SweepTab.start_sweep, test_bases=[BASE, "no such base"])
    assert error_code(shown["test_notice"]) == "base_missing"
    assert "no such base" in interface.call(SweepTab.update_cell_count)["test_count"]
    assert started == []


def test_captions_of_the_selected_lora_are_added_with_one_click(project: Project, interface: Interface) -> None:
    run = project.runs()[0].path
    captions = [f"inkstamp, {subject}" for subject in ("cat", "dog", "apple", "house", "tree", "face", "car")]
    records = [{"set": "train", "caption": caption, "path": "x.png", "sha256": "0"} for caption in ["", *captions]]
    interface.open_project("ink")
    lora = ["001-ink/ink.safetensors"]
    added = interface.call(SweepTab.add_prompts, pick="Training captions", test_loras=lora)
    assert error_code(added["test_notice"]) == "no_training_captions"
    (run / "dataset.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    shown = interface.call(SweepTab.add_prompts, pick="Training captions", test_loras=lora)
    lines = shown["test_prompts"]["value"].splitlines()
    assert lines[len(PROMPTS) :] == ["inkstamp, cat", "inkstamp, apple", "inkstamp, tree"]


def test_the_number_of_images_is_updated(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    shown = interface.call(SweepTab.update_cell_count, test_strengths="0, 0.7, 1")
    assert "6 images: 2 prompts × 3 strengths." in shown["test_count"]
    both = ["001-ink/ink.safetensors", "001-ink/checkpoints/ink-000001.safetensors"]
    assert "10 images" in interface.call(SweepTab.update_cell_count, test_loras=both)["test_count"]
    assert "strength 0" in interface.call(SweepTab.update_cell_count, test_strengths="1")["test_count"]
    assert interface.call(SweepTab.update_cell_count, test_strengths="abc")["test_count"] == ""


def test_the_number_of_images_follows_the_project(project: Project, home: Home, interface: Interface) -> None:
    make_project(home, "empty")
    assert "No LoRA is selected" in interface.open_project("empty")["test_count"]
    assert "14 images" in interface.open_project("ink")["test_count"]
    shown = interface.call(SweepTab.tab_selected, test_loras=["001-ink/gone.safetensors"])
    assert shown["test_loras"]["value"] == []
    assert "No LoRA is selected" in shown["test_count"]


def test_the_grid_fills_cell_by_cell(project: Project, interface: Interface) -> None:
    make_sweep(project, [project.runs()[0].path / "ink.safetensors"], drawn=2, **running_status())
    shown = interface.open_project("ink")
    assert shown["test_grid"].count("<img") == 2
    assert shown["test_grid"].count('class="cell now">drawing') == 1
    assert "2 / 6" in shown["test_tiles"]
    assert "9 s" in shown["test_tiles"]
    assert "/projects/" not in shown["test_grid"]
    assert shown["test_stop"]["visible"]
    assert not shown["test_resume"]["visible"]
    assert not shown["test_download"]["visible"]


def test_a_finished_sweep_shows_figures_and_download(project: Project, interface: Interface) -> None:
    make_sweep(project, [project.runs()[0].path / "ink.safetensors"])
    shown = interface.open_project("ink")
    assert shown["test_grid"].count("<img") == 6
    assert "inkstamp_hc, face" in shown["test_grid"]
    assert "Change at 1" in shown["test_tiles"]
    assert "0.100" in shown["test_tiles"]
    assert "Mean absolute difference from strength 0" in shown["test_measures"]
    charts = charts_in(shown["test_measures"])
    assert points_of(charts["Change"], "LoRA") == [(0, 0), (0.7, 0.07), (1, 0.1)]
    assert "Clipped" not in charts
    saved = Path(shown["test_download"]["value"])
    assert saved.name == "ink-test-001.png"
    assert saved.read_bytes() == (project.path / "sweeps" / "001" / "grid.png").read_bytes()


def test_figures_name_their_lora_and_what_they_need(project: Project, interface: Interface) -> None:
    run = project.runs()[0].path
    folder = make_sweep(project, [run / "ink.safetensors", run / "checkpoints" / "ink-000001.safetensors"])
    rows = [{"lora": "ink", "base": "b", "strength": 1, "change": 0.1, "variety": None}]
    (folder.path / "measures.json").write_text(json.dumps({"rows": rows}), "utf-8")
    shown = interface.open_project("ink")
    assert "difference from strength 0, ink" in shown["test_tiles"]
    job = (folder.path / "job.toml").read_text("utf-8")
    (folder.path / "job.toml").write_text(job.replace('"{trigger}, face", "clock"', '"clock"'), "utf-8")
    assert "needs at least two prompts" in interface.open_project("ink")["test_tiles"]


@pytest.mark.parametrize(("content", "problem"), [("", "at least one entry"), ("  \n ", "at least one entry")])
def test_an_empty_list_is_described_in_plain_words(
    project: Project, interface: Interface, content: str, problem: str
) -> None:
    for box in ("test_prompts", "test_strengths"):
        interface.open_project("ink")
        shown = interface.call(SweepTab.start_sweep, **{box: content})
        assert problem in shown[box]["info"]
        assert "given: nothing" in shown[box]["info"]


@pytest.mark.slow
def test_keys_step_through_the_enlarged_images(open_page: Callable[..., Any], running: Any) -> None:
    project = make_project(running.home, "a grid")
    make_sweep(project, [make_run(project).path / "ink.safetensors"])
    page = open_page()
    page.get_by_role("tab", name="4 · Test").click()
    page.locator("#test-grid button:has(img)").first.click()
    strength = page.locator("#test-large dt:has-text('Strength') + dd")
    strength.get_by_text("0 (no LoRA)").wait_for()
    for key, shown in (("ArrowRight", "0.7"), ("ArrowRight", "1"), ("ArrowRight", "1"), ("ArrowLeft", "0.7")):
        page.keyboard.press(key)
        strength.get_by_text(shown, exact=True).wait_for()
    page.keyboard.press("Escape")
    page.locator("#test-large .lightbox").wait_for(state="detached")
    assert page.evaluate("document.activeElement.dataset.pick") == "base1-lora1-0.7-prompt01.png"


@pytest.mark.slow
def test_an_image_that_is_clicked_while_the_tab_opens_stays_open(open_page: Callable[..., Any], running: Any) -> None:
    project = make_project(running.home, "a grid to open")
    make_sweep(project, [make_run(project).path / "ink.safetensors"])
    page = open_page()
    page.locator("#project input").click()
    page.get_by_role("option", name="a grid to open", exact=True).click()
    for name in ("4 · Test", "1 · Plan"):
        page.get_by_role("tab", name=name).click()
        page.locator("#loading-bar .pending").wait_for(state="attached")
        page.locator("#loading-bar .pending").wait_for(state="detached")
    page.evaluate(
        """() => {
            [...document.querySelectorAll('[role="tab"]')].find((tab) => tab.textContent.includes('Test')).click();
            document.querySelector('#test-grid [data-pick^="base1"]').click();
        }"""
    )
    page.get_by_role("dialog").wait_for()
    page.locator("#loading-bar .pending").wait_for(state="detached")
    page.wait_for_timeout(SETTLED_MS)
    assert page.get_by_role("dialog").is_visible()


def test_opening_the_tab_keeps_what_is_open_and_a_tick_opens_and_closes_nothing(
    project: Project, interface: Interface
) -> None:
    folder = make_sweep(
        project, [project.runs()[0].path / "ink.safetensors"], drawn=5, seeds=[1, 2], **running_status()
    )
    interface.open_project("ink")
    interface.call(SweepTab.pick_in_grid, pick="rows:seed")
    name, other = (path.name for path in sorted((folder.path / "cells").iterdir())[:2])
    interface.call(SweepTab.select_cell, pick=f"pin:{other}")
    interface.call(SweepTab.select_cell, pick=name)
    shown = interface.call(SweepTab.tab_selected)
    assert f'data-cell="{name}"' in shown["test_large"]
    assert 'class="over"' in shown["test_large"]
    assert 'data-pick="page:prompt:1"' in shown["test_grid"]
    folder.update_status(done=4)
    assert f'data-cell="{name}"' in interface.call(SweepTab.tick)["test_large"]
    interface.call(SweepTab.select_cell, pick="close")
    folder.update_status(done=5)
    shown = interface.call(SweepTab.tick)
    assert "test_grid" in shown
    assert "test_large" not in shown
    make_sweep(project, [project.runs()[0].path / "ink.safetensors"], **running_status())
    assert interface.call(SweepTab.tab_selected)["test_large"] == ""


def test_a_tick_updates_nothing_without_changes(project: Project, interface: Interface) -> None:
    folder = make_sweep(project, [project.runs()[0].path / "ink.safetensors"], drawn=2, **running_status())
    interface.open_project("ink")
    assert interface.call(SweepTab.tick) == {}
    folder.update_status(done=3)
    assert "test_grid" in interface.call(SweepTab.tick)


def test_an_enlarged_image_has_its_settings_and_neighbours(project: Project, interface: Interface) -> None:
    make_sweep(project, [project.runs()[0].path / "ink.safetensors"])
    interface.open_project("ink")
    shown = interface.call(SweepTab.select_cell, pick="base1-lora1-0.7-prompt01.png")
    assert "<dt>Strength</dt><dd>0.7</dd>" in shown["test_large"]
    assert "Steps: 25, Seed: 42" in shown["test_large"]
    assert 'data-pick="base1-lora0-0-prompt01.png"' in shown["test_large"]
    assert 'data-pick="base1-lora1-1-prompt01.png"' in shown["test_large"]
    assert interface.call(SweepTab.select_cell, pick="close")["test_large"] == ""


def test_other_loras_are_in_every_image_with_their_strengths(
    project: Project, interface: Interface, started: Started
) -> None:
    interface.open_project("ink")
    others = ["001-ink/checkpoints/ink-000001.safetensors", "001-ink/checkpoints/ink-000002.safetensors"]
    shown = interface.call(SweepTab.start_sweep, test_stacked=others, test_weights="0.6")
    assert error_code(shown["test_notice"]) == "stack_strengths"
    for ids, weights, code in ((["../x"], "", "no_lora"), (others, "a, 1", "config"), (others, "9, 1", "config")):
        shown = interface.call(SweepTab.start_sweep, test_stacked=ids, test_weights=weights)
        assert error_code(shown["test_notice"]) == code
    interface.call(SweepTab.start_sweep, test_stacked=others, test_weights="0.6, 0.5:0.25")
    [(folder, _)] = started
    job = folder.job()
    assert isinstance(job, SweepJob)
    assert [lora.path.name for lora in job.with_loras] == ["ink-000001.safetensors", "ink-000002.safetensors"]
    assert [(lora.strength, lora.text_encoder_strength) for lora in job.with_loras] == [(0.6, None), (0.5, 0.25)]
    interface.call(SweepTab.start_sweep, test_stacked=[], test_weights="")
    interface.call(SweepTab.select_sweep, pick=folder.name)
    shown = interface.call(SweepTab.reuse_settings)
    assert (shown["test_stacked"]["value"], shown["test_weights"]) == (others, "0.6, 0.5:0.25")


def test_all_checkpoints_of_a_run_are_tested_with_one_click(
    project: Project, interface: Interface, started: Started
) -> None:
    interface.open_project("ink")
    shown = interface.call(TrainTab.overview_by_epoch, run="001-ink")
    [(folder, _)] = started
    job = folder.job()
    assert isinstance(job, SweepJob)
    assert [path.name for path in job.loras] == ["ink-000001.safetensors", "ink-000002.safetensors"]
    assert (job.strengths, job.prompts, job.columns) == ([1.0], PROMPTS, "lora")
    assert shown["train_notice"] == ""
    assert folder.path.name in interface.call(SweepTab.tab_selected)["test_title"]
    (project.runs()[0].path / "checkpoints").rename(project.path / "elsewhere")
    assert error_code(interface.call(TrainTab.overview_by_epoch, run="001-ink")["train_notice"]) == "no_checkpoints"


def test_an_image_is_starred_and_compared(project: Project, interface: Interface) -> None:
    folder = make_sweep(project, [project.runs()[0].path / "ink.safetensors"])
    interface.open_project("ink")
    name, other = "base1-lora1-1-prompt01.png", "base1-lora1-0.7-prompt02.png"
    shown = interface.call(SweepTab.select_cell, pick=name)
    assert "strength 0 (no LoRA), seed 42" in shown["test_large"]
    assert shown["test_large"].count("<img") == 2
    download = re.search(r'href="gradio_api/file=([^"]+)" download', shown["test_large"])
    assert download is not None
    assert Path(unquote(download[1])).read_bytes() == (folder.path / "cells" / name).read_bytes()
    starred = interface.call(SweepTab.select_cell, pick=f"star:{name}")
    assert starred_cells(folder.path) == [name]
    assert starred["test_grid"].count('class="star"') == 1
    interface.call(SweepTab.select_cell, pick=f"pin:{other}")
    assert "Compared: strength 0.7" in interface.call(SweepTab.select_cell, pick=name)["test_large"]
    interface.call(SweepTab.select_cell, pick=f"star:{name}")
    assert starred_cells(folder.path) == []
    assert error_code(interface.call(SweepTab.select_cell, pick="star:../job.toml")["test_notice"]) == "no_cell"
    (folder.path / "stars.json").write_text("{", "utf-8")
    assert error_code(interface.call(SweepTab.select_cell, pick=f"star:{name}")["test_notice"]) == "stars"


def test_any_two_axes_are_rows_and_columns_and_the_others_pages(project: Project, interface: Interface) -> None:
    make_sweep(project, [project.runs()[0].path / "ink.safetensors"], seeds=[1, 2])
    shown = interface.open_project("ink")["test_grid"]
    assert [shown.count(name) for name in ("lora0-0-prompt01.png", "-seed2.png")] == [1, 0]
    assert 'data-pick="page:seed:1"' in shown
    second = interface.call(SweepTab.pick_in_grid, pick="page:seed:1")["test_grid"]
    assert (second.count("<img"), second.count("-seed2.png")) == (6, 6)
    seeds_down = interface.call(SweepTab.pick_in_grid, pick="rows:seed")["test_grid"]
    assert (seeds_down.count("<img"), seeds_down.count("-seed2.png")) == (6, 3)
    assert 'data-pick="page:prompt:1"' in seeds_down
    swapped = interface.call(SweepTab.pick_in_grid, pick="columns:seed")["test_grid"]
    assert swapped.index("<th") < swapped.index(">1</span></th>") < swapped.index('scope="row"')
    enlarged = interface.call(SweepTab.pick_in_grid, pick="base1-lora1-1-prompt02-seed2.png")["test_large"]
    assert "<dt>Seed</dt><dd>2</dd>" in enlarged
    for pick in ("rows:lora", "page:seed:2", "page:base:0", "rows:", ":::"):
        assert error_code(interface.call(SweepTab.pick_in_grid, pick=pick)["test_notice"]) == "no_cell", pick


def test_other_files_cannot_be_enlarged(project: Project, interface: Interface) -> None:
    make_sweep(project, [project.runs()[0].path / "ink.safetensors"])
    interface.open_project("ink")
    for name in ["../../job.toml", "/etc/passwd", "base1-lora1-0.8-prompt01.png", "", "grid.png"]:
        shown = interface.call(SweepTab.select_cell, pick=name)
        assert error_code(shown["test_notice"]) == "no_cell", name
        assert "test_large" not in shown, name


def test_stop_and_resume(project: Project, interface: Interface, started: Started) -> None:
    folder = make_sweep(project, [project.runs()[0].path / "ink.safetensors"], drawn=2, **running_status())
    interface.open_project("ink")
    shown = interface.call(SweepTab.stop_sweep)
    assert folder.stop_requested()
    assert (shown["test_stop"]["interactive"], shown["test_stop"]["visible"]) == (False, True)
    assert error_code(interface.call(SweepTab.resume_sweep)["test_notice"]) == "busy"
    folder.update_status(state=JobState.STOPPED)
    interface.open_project("ink")
    interface.call(SweepTab.resume_sweep)
    assert started == [(folder, True)]


def test_a_failed_test_shows_the_reason_and_the_log(project: Project, interface: Interface) -> None:
    lora = project.runs()[0].path / "ink.safetensors"
    folder = make_sweep(
        project, [lora], drawn=0, state=JobState.FAILED, message="Base <b>x</b> is gone.", remedy="Choose."
    )
    folder.log_file.write_text("a last line", "utf-8")
    shown = interface.open_project("ink")
    assert "Base &lt;b&gt;x&lt;/b&gt; is gone." in shown["test_state"]
    assert "Choose." in shown["test_state"]
    assert "a last line" in shown["test_log"]
    assert shown["test_resume"]["visible"]


def test_settings_of_a_test_can_be_reused(project: Project, interface: Interface) -> None:
    make_sweep(project, [project.runs()[0].path / "checkpoints" / "ink-000001.safetensors"])
    interface.open_project("ink")
    shown = interface.call(SweepTab.reuse_settings)
    assert shown["test_loras"]["value"] == ["001-ink/checkpoints/ink-000001.safetensors"]
    assert shown["test_strengths"]["value"] == "0, 0.7, 1"


def test_the_form_is_kept_until_train_shows_another_run(project: Project, interface: Interface) -> None:
    interface.open_project("ink")
    interface.call(SweepTab.tab_selected, run="001-ink", test_prompts="mine")
    assert interface.contents_of("test_prompts") == "mine"
    make_run(project)
    interface.call(SweepTab.tab_selected, run="002-ink")
    assert interface.contents_of("test_prompts") == "\n".join(PROMPTS)
    assert interface.contents_of("test_loras") == ["002-ink/ink.safetensors"]


def test_an_imported_lora_is_copied_once(home: Home, interface: Interface, tmp_path: Path) -> None:
    project = make_project(home)
    interface.open_project("ink")
    shown = interface.call(SweepTab.upload_lora, test_upload=str(LORA))
    assert shown["test_loras"]["value"] == ["loras/kohya_tiny_sdxl_lora.safetensors"]
    shown = interface.call(SweepTab.add_lora_path, test_path=f'"{LORA}"')
    assert shown["test_loras"]["value"] == ["loras/kohya_tiny_sdxl_lora.safetensors"]
    [copy] = project.loras_dir.iterdir()
    assert copy.read_bytes() == LORA.read_bytes()
    other = tmp_path / LORA.name
    other.write_bytes(LORA.read_bytes() + b"\0")
    shown = interface.call(SweepTab.add_lora_path, test_path=str(other))
    assert len(shown["test_loras"]["value"]) == 2
    assert sorted(path.name for path in project.loras_dir.iterdir()) == [
        "kohya_tiny_sdxl_lora-2.safetensors",
        "kohya_tiny_sdxl_lora.safetensors",
    ]


def test_files_that_are_not_loras_are_refused(home: Home, interface: Interface, tmp_path: Path) -> None:
    project = make_project(home)
    interface.open_project("ink")
    for name, content, code in [
        ("text.safetensors", b"no such thing", "lora_file"),
        ("empty.safetensors", b"", "lora_file"),
        ("a.pt", b"\x80\x04.", "lora_file"),
        ("gone.safetensors", None, "lora_missing"),
    ]:
        file = tmp_path / name
        if content is not None:
            file.write_bytes(content)
        shown = interface.call(SweepTab.upload_lora, test_upload=str(file))
        assert error_code(shown["test_notice"]) == code, name
    assert not project.loras_dir.exists()


def test_paths_are_accepted_in_local_mode_only(home: Home) -> None:
    for mode, accepted in ((Mode.LOCAL, True), (Mode.SHARED, False), (Mode.SPACE, False)):
        interface = Interface(home, mode)
        assert interface.is_wired(SweepTab.add_lora_path) is accepted
        interface.blocks.close(verbose=False)


def test_measures_by_features_are_curves_with_a_sentence_and_show_what_is_copied(
    project: Project, interface: Interface
) -> None:
    folder = make_sweep(project, [project.runs()[0].path / "ink.safetensors"])
    Image.new("RGB", (64, 64)).save(project.images_dir / "<b>.png")
    cell = next((folder.path / "cells").glob("*-1-*.png")).relative_to(folder.path)
    rows: list[dict[str, object]] = [
        {"lora": "ink", "strength": 0, "closeness": [0.5, 0.02], "seed_variety": [1.0, 0.0]},
        {"lora": "ink", "strength": 1, "closeness": [0.91, 0.02], "seed_variety": [0.48, 0.031]},
    ]
    rows[1] |= {"trigger_response": [3.2, None]}
    rows[1] |= {"nearest": str(project.images_dir / "<b>.png"), "nearest_cell": str(cell), "nearest_ratio": 0.1}
    pictures = {"features": "wd14", "images": 20, "rows": rows}
    (folder.path / "measures.json").write_text(json.dumps({"rows": [], "pictures": pictures}), "utf-8")
    shown = interface.open_project("ink")["test_measures"]
    charts = charts_in(shown)
    assert points_of(charts["Closeness to the training images"], "ink") == [(0, 0.5), (1, 0.91)]
    assert "Change" not in charts
    assert "features of wd14" in shown
    assert "At 1: Closeness 0.91 ± 0.02; without the LoRA 0.50 ± 0.02." in shown
    assert "48% ± 3%" in shown
    assert "changes a picture 3.20 times as much" in shown
    assert "&lt;b&gt;.png: 10% as far as usual" in shown
    assert "It copies a training image" in shown
    assert "Leakage: strength 0, and prompts with and without {trigger}" in shown


def write_leaking_measures(folder: JobFolder) -> None:
    """Give a test of one LoRA measures that recommend 0.7 to 1, and say that it shows without the trigger word."""
    rows = [{"base": BASE, "lora": "ink", "strength": 0, "closeness": [0.3, 0.02], "contrast": [0.2, 0.01]}]
    rows += [
        rows[0] | {"strength": strength, "closeness": [0.9, 0.03], "leakage": [0.95, 0.02], "seed_variety": [0.8, 0.1]}
        for strength in (0.7, 1)
    ]
    pictures = {"features": "wd14", "images": 20, "rows": rows}
    (folder.path / "measures.json").write_text(json.dumps({"rows": [], "pictures": pictures}), "utf-8")


def test_a_verdict_is_tried_as_a_new_run(project: Project, interface: Interface, started: Started) -> None:
    run = project.runs()[0]
    write_leaking_measures(make_sweep(project, [run.path / "ink.safetensors"]))
    job = run.job()
    assert isinstance(job, TrainJob)
    rate = job.recipe.text_encoder_lr
    shown = interface.open_project("ink")["test_measures"]
    assert f"{format_value(rate)} → {format_value(rate / 2)}, all else as in 001-ink" in shown
    [pick] = re.findall(r'data-pick="(try:[^"]*)"', shown)
    interface.call(TrainTab.open_form)
    handed = interface.call(SweepTab.try_change, pick=pick)
    assert any(isinstance(value, EditedRun) and hash(value) for value in handed.values())
    opened = interface.call(TrainTab.tab_selected)
    assert float(interface.contents_of("recipe_text_encoder_lr")) == rate / 2
    assert int(interface.contents_of("recipe_epochs")) == job.recipe.epochs
    assert project.info().parent == "001-ink"
    assert "001-ink" in opened["train_lineage"]
    interface.call(TrainTab.start_training)
    trained = started[0][0].job()
    assert isinstance(trained, TrainJob)
    assert [change.name for change in setting_changes(trained.recipe, job.recipe)] == ["text_encoder_lr"]
    assert trained.parent == run.path
    assert error_code(interface.call(SweepTab.try_change, pick="try:99")["test_notice"]) == "no_change"


def test_only_a_run_of_the_project_can_be_tried_again(project: Project, interface: Interface, tmp_path: Path) -> None:
    copy = tmp_path / "ink.safetensors"
    copy.write_bytes(LORA.read_bytes())
    write_leaking_measures(make_sweep(project, [copy]))
    shown = interface.open_project("ink")["test_measures"]
    assert "It shows without the trigger word" in shown
    assert "try:" not in shown


@pytest.mark.slow
def test_the_recommended_strength_is_marked_and_a_verdict_opens_train(
    open_page: Callable[..., Any], running: Any
) -> None:
    project = make_project(running.home, "a verdict")
    write_leaking_measures(make_sweep(project, [make_run(project).path / "ink.safetensors"]))
    page = open_page()
    page.locator("#project input").click()
    page.get_by_role("option", name="a verdict", exact=True).click()
    page.get_by_role("tab", name="3 · Train").click()
    page.locator("#train-section").get_by_text("All runs").click()
    page.locator("#train-ledger").wait_for()
    page.get_by_role("tab", name="4 · Test").click()
    chart = page.locator("#test-measures studio-chart").first
    for kind in ("mark", "spread"):
        chart.locator(f".{kind}.recommended").first.wait_for(state="attached")
    page.locator("#test-measures").get_by_role("button", name="Try this as a new run").click()
    page.locator("#train-lineage").get_by_text("001-ink").first.wait_for()
    page.locator("#train-start").wait_for()
    assert project.info().recipe["text_encoder_lr"] > 0
    assert project.info().parent == "001-ink"


def test_the_recommended_checkpoint_is_named_with_those_that_are_as_good(
    project: Project, interface: Interface
) -> None:
    checkpoints = sorted((project.runs()[0].path / "checkpoints").iterdir())
    for number, path in enumerate(checkpoints, 1):
        save_file(load_file(path), path, {"ss_steps": str(4 * number)})
    folder = make_sweep(project, checkpoints)
    rows = [
        {"base": BASE, "lora": path.stem, "strength": 1, "closeness": [0.9, 0.02], "seed_variety": [0.5, 0.03]}
        for path in reversed(checkpoints)
    ]
    pictures = {"features": "wd14", "images": 20, "rows": rows}
    (folder.path / "measures.json").write_text(json.dumps({"rows": [], "pictures": pictures}), "utf-8")
    shown = interface.open_project("ink")["test_measures"]
    assert "Recommended checkpoint of 001-ink: ink-000001" in shown
    assert "ink-000001 to ink-000002 are as good" in shown
