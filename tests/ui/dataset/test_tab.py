"""The Dataset tab: import, curation, tagging and review; hostile file names, archives and requests do no harm."""

from __future__ import annotations

import re
import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_studio.dataset.captions.edits import set_text
from lora_studio.dataset.captions.text import read_caption
from lora_studio.dataset.marks import MARKS_FILE
from lora_studio.dataset.scan import scan
from lora_studio.dataset.tagging.cache import TagCache
from lora_studio.dataset.tagging.catalogue import find_tagger
from lora_studio.dataset.tagging.interface import Prediction
from lora_studio.dataset.tagging.stage import tag
from lora_studio.events import TaggedEvent
from lora_studio.example import EXAMPLE_IMAGES
from lora_studio.settings.choices import ExistingCaptions
from lora_studio.settings.job_specs import TagJob
from lora_studio.ui.dataset import background_scan as background_scan
from lora_studio.ui.dataset.caption_edit import change_caption
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.curate import CurationHandlers
from lora_studio.ui.dataset.gallery_handlers import GalleryHandlers
from lora_studio.ui.dataset.handlers import CaptionHandlers
from lora_studio.ui.dataset.image_item import Filter, image_id
from lora_studio.ui.dataset.tab import DatasetTab
from lora_studio.ui.plan.tab import PlanTab
from lora_studio.ui.server import Mode
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from lora_studio.workspace.project import Home, Project, ProjectInfo
from tests.support.interface import Interface, error_code
from tests.support.jobs import running_status
from tests.support.scenes import photo

TRIGGER = "inkstamp_hc"
NAMES = ["guitar-mirrored.png", "guitar.png", "key.png", "umbrella.png"]
HOSTILE = "<img src=x onerror=alert(1)>.png"
SCAN_TICK_SECONDS = 60


def wait_for_scan() -> None:
    """Wait until no scan runs in the background."""
    for thread in threading.enumerate():
        if thread.name == "dataset scan":
            thread.join(SCAN_TICK_SECONDS)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four example images: a guitar and its mirrored duplicate, a key, an umbrella that is too small."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in NAMES:
        shutil.copy(EXAMPLE_IMAGES / name, folder / name)
    (folder / "key.txt").write_text(f"{TRIGGER}, key", "utf-8")
    return folder


@pytest.fixture(scope="module")
def imported(home: Home, interface: Interface, pictures: Path) -> Project:
    """A project with those images, imported and scanned by the tab."""
    project = home.create_project("imported", ProjectInfo(trigger_word=TRIGGER))
    interface.open_project(project.name)
    interface.call(DatasetTab.import_folder, dataset_folder=str(pictures))
    wait_for_scan()
    return project


@pytest.fixture
def project(home: Home, interface: Interface, imported: Project) -> Project:
    """A copy of that project, opened in the tab, in Curate."""
    project = home.duplicate_project(imported.name, f"ink {len(home.projects())}")
    interface.open_project(project.name)
    interface.call(DatasetTab.section_changed, dataset_section="Curate")
    return project


def names(project: Project) -> list[str]:
    """Return the names of the dataset's images."""
    return [item.name for item in Contents.of(project).items]


def pick(project: Project, verb: str, name: str) -> str:
    """Return what a button of an image sends."""
    return f"{verb}:{image_id(project, project.images_dir / name)}"


def button(html: str, text: str) -> str:
    """Return what the first button with that text sends."""
    found = re.search(rf'data-pick="([^"]+)"[^>]*>{re.escape(text)}<', html)
    assert found, text
    return found[1]


def test_empty_project_opens_in_import(home: Home, interface: Interface) -> None:
    home.create_project("empty")
    shown = interface.open_project("empty")
    assert shown["dataset_section"] == "Import"
    assert shown["dataset_tiles"] == ""
    assert shown["tag_start"]["interactive"] is False
    assert shown["review_next"]["interactive"] is False


def test_import_is_reported_scanned_and_shown(imported: Project, interface: Interface) -> None:
    project = imported
    interface.open_project(project.name)
    shown = interface.call(DatasetTab.section_changed, dataset_section="Import")
    assert "4 images added, 1 caption kept." in shown["dataset_report"]
    assert names(project) == NAMES
    tiles = re.findall(r'"label">([^<]+)</div><div class="figure">([^<]+)', shown["dataset_tiles"])
    assert tiles == [
        ("Images", "4"),
        ("Duplicates", "1"),
        ("To check", "1"),
        ("Captioned", "1 / 4"),
        ("Reviewed", "0 / 4"),
    ]
    sources = re.findall(r'<img class="thumb" src="([^"]+)"', shown["dataset_grid"])
    assert len(sources) == 4
    assert all(re.search(r"/cache/thumbnails/[0-9a-f]{64}-256\.webp$", source) for source in sources)
    assert str(project.path) not in shown["dataset_grid"]


def test_import_of_kohya_sets_infers_the_trigger_word_and_keeps_it_in_the_captions(
    home: Home, interface: Interface, tmp_path: Path
) -> None:
    folder = tmp_path / "10_saria"
    folder.mkdir()
    for name in ("crown.png", "fish.png", "key.png", "owl.png", "pizza.png", "robot.png"):
        shutil.copy(EXAMPLE_IMAGES / name, folder)
        (folder / name).with_suffix(".txt").write_text(f"saria_zelda, ink, {name}", "utf-8")
    project = home.create_project("kohya")
    interface.open_project(project.name)
    interface.call(DatasetTab.import_folder, dataset_folder=str(tmp_path))
    wait_for_scan()
    shown = interface.call(DatasetTab.scan_tick)
    assert project.info().trigger_word == "saria_zelda"
    assert "Trigger word set to saria_zelda" in shown["dataset_report"]
    assert interface.contents_of("tag_trigger") == "saria_zelda"
    assert interface.call(PlanTab.tab_selected)["plan_trigger"]["value"] == "saria_zelda"
    assert project.info().trigger_word == "saria_zelda"
    findings = interface.call(DatasetTab.section_changed, dataset_section="Captions")["captions_findings"]
    assert re.findall(r'data-pick="fix:(common_tag[^"]*)"', findings) == ["common_tag:ink"]
    interface.call(CaptionHandlers.finding_clicked, pick="fix:common_tag:ink")
    assert Contents.of(project).items[0].caption == "saria_zelda, crown.png"


def test_curate_lists_duplicates_and_issues_with_reasons(project: Project, interface: Interface) -> None:
    shown = interface.call(DatasetTab.section_changed, dataset_section="Curate")
    assert "Mirrored duplicate" in shown["dataset_groups"]
    assert shown["dataset_groups"].count('<strong class="kept">') == 1
    assert "384 x 384 px" in shown["dataset_flagged"]
    assert shown["curate_apply"] == {"value": "Set aside all proposed (1)", "visible": True}


def test_similar_images_are_listed_after_tagging_but_not_proposed(
    project: Project, interface: Interface, home: Home
) -> None:
    shown = interface.call(DatasetTab.section_changed, dataset_section="Curate")
    assert "after tagging" in shown["curate_variety"]
    for number in range(6):
        photo(number, (64, 64)).save(project.images_dir / f"photo{number}.png")
    interface.call(DatasetTab.start_scan)
    wait_for_scan()
    infos = [item.info for item in Contents.of(project).items if item.info]
    cache = TagCache.of(find_tagger("demo", home=home), home)
    vectors = np.random.default_rng(0).normal(0, 1, (len(infos), 32))
    vectors[-1] = vectors[-2] + 0.01  # photo5 is like photo4
    for info, vector in zip(infos, vectors, strict=True):
        cache.add(info.sha256, Prediction(features=vector.astype(np.float16)))
    cache.flush()
    folder = JobFolder.create(project.new_tag_dir(), TagJob(dataset=project.dataset_dir, tagger="demo"))
    folder.update_status(state=JobState.DONE)
    interface.call(DatasetTab.tagging_tick)  # tagging has finished: its features are compared
    wait_for_scan()
    shown = interface.call(DatasetTab.section_changed, dataset_section="Curate")
    assert "Similar: 100%" in shown["dataset_groups"]
    assert "Diversity" in shown["curate_variety"]
    assert shown["dataset_pairs"].count('class="pair"') == 10
    assert shown["curate_apply"]["value"] == "Set aside all proposed (1)"
    shown = interface.call(CurationHandlers.button_clicked, pick=pick(project, "keep", "photo5.png"))
    assert "Similar" not in shown["dataset_groups"]


def test_buckets_show_the_crop_of_each_image(project: Project, interface: Interface) -> None:
    Image.new("RGB", (1500, 1000)).save(project.images_dir / "wide.png")
    interface.call(DatasetTab.start_scan)
    wait_for_scan()
    shown = interface.call(DatasetTab.section_changed, dataset_section="Curate")["dataset_buckets"]
    assert re.findall(r"<strong>([^<]+)</strong>", shown) == ["768 × 768", "384 × 384", "1216 × 832"]
    assert "3 sizes, from 384 × 384 to 1500 × 1000 px" in shown
    assert re.search(r'title="wide.png: 1500 × 1000 px, 3% cropped".*?inset: 0.0% 1.\d% 0.0% 1.\d%', shown, re.DOTALL)


def test_image_is_set_aside_and_restored_with_one_click_each(project: Project, interface: Interface) -> None:
    shown = interface.call(CurationHandlers.button_clicked, pick=pick(project, "set_aside", "umbrella.png"))
    assert names(project) == NAMES[:3]
    assert "umbrella.png" in shown["dataset_message"]
    assert "umbrella.png" in shown["curate_aside"]
    shown = interface.call(CurationHandlers.button_clicked, pick=button(shown["dataset_message"], "Restore"))
    assert names(project) == NAMES
    assert "umbrella.png" in shown["dataset_message"]
    assert "384 x 384" in shown["dataset_flagged"]


def test_proposed_images_and_their_captions_are_set_aside_and_restored(project: Project, interface: Interface) -> None:
    copy = project.images_dir / "guitar-mirrored.png"
    copy.with_suffix(".txt").write_text("a guitar", "utf-8")
    before = {path.name: path.read_bytes() for path in project.images_dir.iterdir()}
    shown = interface.call(CurationHandlers.set_aside_proposed)
    assert names(project) == NAMES[1:]
    assert not copy.with_suffix(".txt").exists()
    assert shown["curate_apply"]["visible"] is False
    assert "of guitar.png" in shown["curate_aside"]
    interface.call(CurationHandlers.restore_all)
    assert {path.name: path.read_bytes() for path in project.images_dir.iterdir()} == before


def test_loose_images_are_moved_into_a_set(project: Project, interface: Interface) -> None:
    loose = project.dataset_dir / "by hand.png"
    first = project.images_dir.name
    Image.new("RGB", (700, 700), (7, 90, 30)).save(loose)
    interface.open_project(project.name)
    shown = interface.call(DatasetTab.section_changed, dataset_section="Curate")
    assert "1 image in no set" in shown["curate_status"]
    assert (shown["curate_move_loose"]["visible"], shown["curate_move_loose"]["value"]) == (
        True,
        f"Move 1 loose image into {first}",
    )
    interface.call(DatasetTab.move_loose_images)
    wait_for_scan()
    shown = interface.call(DatasetTab.section_changed, dataset_section="Curate")
    assert not loose.exists()
    assert (project.dataset_dir / first / loose.name).is_file()
    assert "in no set" not in shown["curate_status"]
    assert shown["curate_move_loose"]["visible"] is False


def test_damaged_marks_are_reported_and_kept(project: Project, interface: Interface) -> None:
    marks = project.path / MARKS_FILE
    marks.write_text('{"kept": ["', "utf-8")
    shown = interface.call(DatasetTab.section_changed, dataset_section="Curate")
    assert "marks.json" in shown["curate_status"]
    duplicate = Contents.of(project).proposed[0]
    shown = interface.call(CurationHandlers.button_clicked, pick=f"keep:{duplicate.id}")
    assert "marks.damaged.json" in shown["curate_status"]
    assert (project.path / "marks.damaged.json").read_text("utf-8") == '{"kept": ["'
    assert Contents.of(project).by_id[duplicate.id].kept


def test_the_error_of_an_import_is_replaced_by_that_of_the_next(
    project: Project, interface: Interface, tmp_path: Path
) -> None:
    (tmp_path / "nothing").mkdir()
    interface.call(DatasetTab.import_folder, dataset_folder=str(tmp_path / "nothing"))
    wait_for_scan()
    shown = interface.call(DatasetTab.scan_tick)
    assert error_code(shown["dataset_progress"])
    shown = interface.call(DatasetTab.import_folder, dataset_folder=str(tmp_path / "missing"))
    assert error_code(shown["dataset_notice"]) == "no_folder"
    assert error_code(shown["dataset_progress"]) == ""


def test_tiles_show_that_a_scan_is_running_instead_of_the_earlier_result(
    project: Project, interface: Interface, monkeypatch: pytest.MonkeyPatch
) -> None:
    def figures() -> list[str]:
        return re.findall(r'class="figure">([^<]+)', interface.contents_of("dataset_tiles"))[1:3]

    go_on = threading.Event()
    monkeypatch.setattr(background_scan, "scan", lambda *args, **options: go_on.wait() and scan(*args, **options))
    assert figures() == ["1", "1"]
    interface.call(DatasetTab.start_scan)
    interface.call(CaptionHandlers.show_next)
    assert figures() == ["–", "–"]
    go_on.set()
    wait_for_scan()
    interface.call(DatasetTab.scan_tick)
    assert figures() == ["1", "1"]


def test_loose_images_are_not_moved_during_a_job_or_scan(
    project: Project, interface: Interface, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(background_scan, "scan", lambda *args, **options: go_on.wait() and scan(*args, **options))
    loose = project.dataset_dir / "by hand.png"
    Image.new("RGB", (700, 700), (7, 90, 30)).save(loose)
    interface.call(DatasetTab.start_scan)
    notice = interface.call(DatasetTab.move_loose_images)["dataset_notice"]
    go_on.set()
    wait_for_scan()
    assert error_code(notice) == "busy"
    folder = JobFolder.create(project.new_tag_dir(), TagJob(dataset=project.dataset_dir, tagger="demo"))
    folder.set_status(JobStatus(**running_status()))
    notice = interface.call(DatasetTab.move_loose_images)["dataset_notice"]
    assert error_code(notice) == "busy"
    assert folder.name in notice
    assert loose.is_file()


def test_duplicate_can_be_used_instead(project: Project, interface: Interface) -> None:
    interface.call(CurationHandlers.button_clicked, pick=pick(project, "use_instead", "guitar-mirrored.png"))
    assert names(project) == ["guitar-mirrored.png", "key.png", "umbrella.png"]
    assert Contents.of(project).proposed == []


def test_image_marked_as_kept_is_not_proposed_until_it_is_checked_again(project: Project, interface: Interface) -> None:
    shown = interface.call(CurationHandlers.button_clicked, pick=pick(project, "keep", "guitar-mirrored.png"))
    assert shown["dataset_groups"] == ""
    assert shown["curate_apply"]["visible"] is False
    assert error_code(interface.call(CurationHandlers.set_aside_proposed)["dataset_notice"]) == "nothing"
    assert names(project) == NAMES
    shown = interface.call(CurationHandlers.button_clicked, pick=button(shown["curate_aside"], "Check again"))
    assert "Mirrored duplicate" in shown["dataset_groups"]


def test_all_images_to_check_are_kept_with_one_click_and_checked_again(project: Project, interface: Interface) -> None:
    shutil.copy(EXAMPLE_IMAGES / "umbrella.png", project.images_dir / "small.png")
    with Image.open(project.images_dir / "small.png") as image:
        image.convert("L").point(lambda value: 255 - value).save(project.images_dir / "small.png")
    interface.call(DatasetTab.start_scan)
    wait_for_scan()
    shown = interface.call(DatasetTab.section_changed, dataset_section="Curate")
    assert shown["curate_keep_flagged"] == {"value": "Keep all to check (2)", "visible": True}
    shown = interface.call(CurationHandlers.keep_flagged)
    assert shown["dataset_flagged"] == ""
    assert shown["curate_keep_flagged"]["visible"] is False
    shown = interface.call(CurationHandlers.button_clicked, pick=button(shown["dataset_message"], "Undo"))
    assert shown["curate_keep_flagged"]["value"] == "Keep all to check (2)"


def test_an_image_that_is_gone_is_no_longer_shown_after_a_click(project: Project, interface: Interface) -> None:
    gone = pick(project, "set_aside", "umbrella.png")
    interface.call(DatasetTab.section_changed, dataset_section="Review")
    (project.images_dir / "umbrella.png").unlink()
    shown = interface.call(CurationHandlers.button_clicked, pick=gone)
    assert error_code(shown["dataset_notice"]) == "no_image"
    assert shown["dataset_grid"].count('class="shot"') == 3


def test_an_image_that_is_opened_is_on_the_page_of_the_grid(home: Home, interface: Interface) -> None:
    project = home.create_project("fifty")
    for number in range(50):
        (project.images_dir / f"{number:02d}.png").write_bytes(b"")
    interface.open_project(project.name)
    interface.call(DatasetTab.section_changed, dataset_section="Curate")
    shown = interface.call(CurationHandlers.button_clicked, pick=pick(project, "show", "49.png"))
    assert "49–50 of 50 images" in shown["dataset_grid"]


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "show",
        "show:",
        "set_aside:../guitar.png",
        "set_aside:guitar.png",
        "page:abc",
        "page:-1",
        "restore:x,y",
        "drop:all",
        "é",
    ],
)
def test_unknown_request_of_a_button_is_refused(project: Project, interface: Interface, asked: str) -> None:
    shown = interface.call(CurationHandlers.button_clicked, pick=asked)
    assert 'role="alert"' in shown["dataset_notice"]
    assert names(project) == NAMES


def test_keys_of_curate_act_in_order_on_the_rows_that_are_left(project: Project, interface: Interface) -> None:
    shown = interface.call(CurationHandlers.keys_pressed, presses=["Delete:0", "Delete:0", "z:"])
    assert names(project) == ["guitar.png", "key.png", "umbrella.png"]
    assert "umbrella.png" in shown["dataset_message"]
    interface.call(CurationHandlers.keys_pressed, presses=[f"z:{button(shown['curate_aside'], 'Restore')}", "k:7"])
    assert names(project) == NAMES
    assert [item.name for item in Contents.of(project).items if item.kept] == ["umbrella.png"]
    shown = interface.call(CurationHandlers.keys_pressed, presses=["u:0", "k:0"])
    assert names(project) == ["guitar-mirrored.png", "key.png", "umbrella.png"]
    assert shown["dataset_groups"] == ""


def test_a_key_of_curate_without_a_row_changes_nothing(project: Project, interface: Interface) -> None:
    for name in ("guitar-mirrored.png", "umbrella.png"):
        interface.call(CurationHandlers.button_clicked, pick=pick(project, "keep", name))
    interface.call(CurationHandlers.keys_pressed, presses=["Delete:0", "k:-1", "x:0", "z:", ""])
    assert names(project) == NAMES


def test_grid_shows_images_that_match_the_filter(project: Project, interface: Interface) -> None:
    (project.images_dir / "guitar.txt").write_text("guitar", "utf-8")
    interface.call(DatasetTab.section_changed, dataset_section="Review")

    def left(chosen: Filter) -> list[str]:
        interface.call(GalleryHandlers.filter_picked, pick="all")
        grid = interface.call(GalleryHandlers.filter_picked, pick=f"filter:{chosen}")["dataset_grid"]
        return [title.split("\n")[0] for title in re.findall(r'aria-pressed="\w+" title="([^"]+)"', grid)]

    assert left(Filter.UNREVIEWED) == NAMES
    assert left(Filter.NO_CAPTION) == ["guitar-mirrored.png", "umbrella.png"]
    assert left(Filter.NO_TRIGGER) == ["guitar.png"]
    assert left(Filter.FLAGGED) == ["guitar-mirrored.png", "umbrella.png"]


def test_caption_is_saved_on_leaving_the_text_box_or_the_image(project: Project, interface: Interface) -> None:
    interface.call(CurationHandlers.button_clicked, pick=pick(project, "show", "guitar.png"))
    shown = interface.call(CaptionHandlers.save_caption, review_caption=f"{TRIGGER},  guitar\nred ")
    assert (project.images_dir / "guitar.txt").read_text("utf-8") == f"{TRIGGER}, guitar red"
    assert "Saved" in shown["review_saved"]
    shown = interface.call(CaptionHandlers.show_next, review_caption=f"{TRIGGER}, guitar")
    assert read_caption(project.images_dir / "guitar.png") == f"{TRIGGER}, guitar"
    assert "key.png" in shown["review_line"]
    assert interface.contents_of("review_caption") == f"{TRIGGER}, key"


def test_caption_that_was_not_edited_is_not_written(project: Project, interface: Interface) -> None:
    interface.call(CurationHandlers.button_clicked, pick=pick(project, "show", "key.png"))
    file = project.images_dir / "key.txt"
    file.write_text("from elsewhere", "utf-8")
    interface.call(CaptionHandlers.save_caption)
    interface.call(CaptionHandlers.show_next)
    assert file.read_text("utf-8") == "from elsewhere"


def test_caption_that_changed_on_disk_is_shown_before_it_is_overwritten(project: Project, interface: Interface) -> None:
    interface.call(CurationHandlers.button_clicked, pick=pick(project, "show", "key.png"))
    file = project.images_dir / "key.txt"
    file.write_text("from elsewhere", "utf-8")
    shown = interface.call(CaptionHandlers.show_next, review_caption="mine")
    assert error_code(shown["dataset_notice"]) == "caption_changed"
    assert "from elsewhere" in shown["dataset_notice"]
    assert "review_line" not in shown
    assert file.read_text("utf-8") == "from elsewhere"
    interface.call(CaptionHandlers.save_caption)
    assert file.read_text("utf-8") == "mine"


def test_caption_of_a_removed_image_is_not_saved(project: Project, interface: Interface) -> None:
    interface.call(CurationHandlers.button_clicked, pick=pick(project, "show", "key.png"))
    (project.images_dir / "key.png").unlink()
    (project.images_dir / "key.txt").unlink()
    interface.call(CaptionHandlers.show_next, review_caption="lost")
    assert not (project.images_dir / "key.txt").exists()


def test_review_shows_the_next_image_after_one_is_set_aside(project: Project, interface: Interface) -> None:
    interface.call(CurationHandlers.button_clicked, pick=pick(project, "show", "guitar.png"))
    shown = interface.call(CurationHandlers.set_current_aside, review_caption=f"{TRIGGER}, my guitar")
    assert "key.png" in shown["review_line"]
    interface.call(CurationHandlers.restore_all)
    assert read_caption(project.images_dir / "guitar.png") == f"{TRIGGER}, my guitar"


def test_button_puts_the_trigger_word_first(project: Project, interface: Interface) -> None:
    (project.images_dir / "guitar.txt").write_text("guitar", "utf-8")
    interface.call(CurationHandlers.button_clicked, pick=pick(project, "show", "guitar.png"))
    interface.call(CaptionHandlers.add_trigger_word)
    assert read_caption(project.images_dir / "guitar.png") == f"{TRIGGER}, guitar"


def test_failed_import_is_reported_and_changes_nothing(project: Project, interface: Interface, tmp_path: Path) -> None:
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../outside.png", (EXAMPLE_IMAGES / "key.png").read_bytes())
    interface.call(DatasetTab.import_files, dataset_files=[str(archive)])
    wait_for_scan()
    shown = interface.call(DatasetTab.scan_tick)
    assert names(project) == NAMES
    assert not (tmp_path / "outside.png").exists()
    assert 'role="alert"' in shown["dataset_progress"]
    (tmp_path / "text.png").write_text("no picture", "utf-8")
    interface.call(DatasetTab.import_files, dataset_files=[str(tmp_path / "text.png")])
    wait_for_scan()
    shown = interface.call(DatasetTab.scan_tick)
    assert "text.png" in shown["dataset_report"]
    assert names(project) == NAMES


def test_folder_can_be_given_in_quotes(home: Home, interface: Interface, pictures: Path) -> None:
    project = home.create_project("quoted")
    interface.open_project(project.name)
    interface.call(DatasetTab.import_folder, dataset_folder=f'"{pictures}"')
    wait_for_scan()
    assert len(names(project)) == len(list(pictures.glob("*.png")))


@pytest.mark.parametrize("folder", ["", "/no/such/folder"])
def test_import_of_a_missing_folder_is_refused(project: Project, interface: Interface, folder: str) -> None:
    notice = interface.call(DatasetTab.import_folder, dataset_folder=folder)["dataset_notice"]
    assert error_code(notice) == "no_folder"


def test_shared_studio_takes_no_paths_of_this_computer(home: Home, pictures: Path, started: list[Any]) -> None:
    project = home.create_project("shared")
    shutil.copy(pictures / "key.png", project.images_dir)
    interface = Interface(home, Mode.SHARED)
    interface.open_project(project.name)
    shown = interface.call(DatasetTab.import_folder, dataset_folder=str(pictures))
    assert error_code(shown["dataset_notice"]) == "not_local"
    shown = interface.call(DatasetTab.start_tagging, tag_tagger=str(pictures))
    assert error_code(shown["dataset_notice"]) == "tagger"
    assert names(project) == ["key.png"]
    assert started == []


def test_example_fills_an_empty_project(home: Home, interface: Interface) -> None:
    project = home.create_project("mine")
    interface.open_project("mine")
    interface.call(DatasetTab.import_example)
    wait_for_scan()
    contents = Contents.of(project)
    assert len(contents.items) == 24
    assert len(contents.proposed) == 3
    assert project.info().trigger_word == TRIGGER


def test_tagging_starts_a_job_and_saves_the_trigger_word(
    project: Project, interface: Interface, started: list[tuple[JobFolder, bool]]
) -> None:
    shown = interface.call(
        DatasetTab.start_tagging,
        tag_tagger="demo",
        tag_also=["demo-captioner"],
        tag_threshold=0.4,
        tag_trigger=" ink2 ",
        tag_existing="append",
        tag_only="cat, hat",
    )
    assert shown["dataset_notice"] == ""
    [(folder, resume)] = started
    assert not resume
    job = folder.job()
    assert isinstance(job, TagJob)
    assert (job.tagger, job.threshold, job.trigger_word, job.existing) == ("demo", 0.4, "ink2", ExistingCaptions.APPEND)
    assert (job.also, job.character_threshold, job.only_tags) == (["demo-captioner"], 0.85, ["cat", "hat"])
    assert job.dataset == project.dataset_dir
    assert project.info().trigger_word == "ink2"


def test_running_tagging_is_shown_can_be_stopped_and_not_started_twice(
    project: Project, interface: Interface, started: list[tuple[JobFolder, bool]]
) -> None:
    folder = JobFolder.create(project.new_tag_dir(), TagJob(dataset=project.dataset_dir, tagger="demo"))
    folder.set_status(JobStatus(**running_status() | {"done": 1, "total": 4, "seconds_left": 75.0}))
    folder.emit(TaggedEvent(path=str(project.images_dir / HOSTILE), caption="<script>", done=1, total=4))
    shown = interface.call(DatasetTab.tagging_tick)
    assert "1 of 4" in shown["tag_state"]
    assert "1 min 15 s left" in shown["tag_state"]
    assert "&lt;script&gt;" in shown["tag_state"]
    assert "<script>" not in shown["tag_state"]
    assert shown["tag_start"]["visible"] is False
    notice = interface.call(DatasetTab.start_tagging, tag_tagger="demo")["dataset_notice"]
    assert error_code(notice) == "busy"
    interface.call(DatasetTab.stop_tagging)
    assert folder.stop_requested()
    assert started == []


def test_tagging_can_be_undone(
    project: Project, interface: Interface, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Says:
        name, labels, image_size = "demo", (), 16
        content_hash = staticmethod(lambda: "says")
        preprocess = staticmethod(lambda image: image)
        load = classmethod(lambda cls, **options: cls)
        with_prompt = classmethod(lambda cls, *options: cls)
        predict = staticmethod(lambda inputs: [Prediction(sentence="a thing") for _ in inputs])

    monkeypatch.setattr("lora_studio.dataset.tagging.stage.find_tagger", lambda *args, **options: Says)
    job = TagJob(dataset=project.dataset_dir, tagger="demo", trigger_word=TRIGGER, existing=ExistingCaptions.OVERWRITE)
    folder = JobFolder.create(project.new_tag_dir(), job)
    result = tag(job, folder, home=home, report=folder.emit, should_stop=lambda: False)
    folder.write_result(result.model_dump(mode="json"))
    folder.update_status(state=JobState.DONE, done=4, total=4)
    shown = interface.call(DatasetTab.section_changed, dataset_section="Tag")
    assert "4 images tagged by demo." in shown["tag_state"]
    assert shown["tag_undo"]["visible"] is True
    shown = interface.call(CaptionHandlers.undo)
    assert "4 captions" in shown["dataset_message"]
    assert shown["tag_undo"]["visible"] is False
    assert "tagged by demo" not in shown["tag_state"]
    assert [item.caption for item in Contents.of(project).items] == [None, None, f"{TRIGGER}, key", None]
    shown = interface.call(CaptionHandlers.redo)
    assert shown["tag_undo"]["visible"] is True
    assert [item.caption for item in Contents.of(project).items] == [f"{TRIGGER}, a thing"] * 4
    change_caption(Contents.of(project), Contents.of(project).items[0], set_text("edited", "Edited"))
    assert interface.call(DatasetTab.section_changed, dataset_section="Tag")["tag_undo"]["visible"] is False


@pytest.mark.slow
def test_from_import_to_caption_in_a_browser(page: Any, running: Any, pictures: Path) -> None:
    """Files are uploaded and scanned, set aside and restored with mouse and keys; a typed caption is saved."""
    shutil.copy(pictures / "key.png", pictures / HOSTILE)
    page.get_by_role("button", name="Import my images").click()
    page.locator("#dataset-files input[type=file]").set_input_files(sorted(pictures.iterdir()))
    page.locator("#dataset-tiles").get_by_text("1 mirrored").wait_for()
    report = page.locator("#dataset-report")
    report.get_by_text("4 images added, 1 caption kept, 1 already imported.").wait_for()

    def section(name: str) -> None:
        page.locator("#dataset-section").get_by_text(name, exact=True).click()

    section("Curate")
    page.locator("#dataset-groups").get_by_role("button", name="Set aside").click()
    page.locator("#dataset-message").get_by_text("was set aside").wait_for()
    project = running.home.projects()[0]
    assert len(names(project)) == 3
    page.locator("#curate-aside").get_by_role("button", name="Restore").click()
    page.locator("#dataset-groups").get_by_text("Mirrored duplicate").wait_for()
    assert len(names(project)) == 4

    page.locator("#curate-status").click()
    page.keyboard.press("ArrowDown")
    page.locator("#dataset-groups .group.here").wait_for()
    page.keyboard.press("Delete")
    page.locator("#dataset-message").get_by_text("was set aside").wait_for()
    assert len(names(project)) == 3
    page.locator("#dataset-flagged .entry.here").wait_for()  # the next one is selected
    page.keyboard.press("z")
    page.locator("#dataset-message").get_by_text("was restored").wait_for()
    assert len(names(project)) == 4
    page.keyboard.press("k")
    page.locator("#curate-aside").get_by_text("Marked as kept").wait_for()
    page.locator("#curate-aside").get_by_role("button", name="Check again").click()
    page.locator("#dataset-groups").get_by_text("Mirrored duplicate").wait_for()
    page.keyboard.press("ArrowDown")
    page.locator("#dataset-flagged .entry.here").wait_for()
    page.keyboard.press("ArrowUp")
    page.locator("#dataset-groups .group.here").wait_for()
    page.keyboard.press("u")
    page.locator("#dataset-message").get_by_text("was set aside").wait_for()
    assert "guitar.png" not in names(project)
    page.keyboard.press("z")
    page.locator("#dataset-groups").get_by_text("Mirrored duplicate").wait_for()
    assert len(names(project)) == 4

    section("Review")
    page.locator("#dataset-grid .shot").nth(2).click()
    page.locator("#review-line").get_by_text("3 of 4").wait_for()
    chosen = Contents.of(project).items[2]
    box = page.locator("#review-caption textarea")
    box.fill("my own words")
    page.locator("#review-hint").get_by_text("3 of 75 tokens").wait_for()
    page.locator("#review-line").click()  # leaves the text box
    page.locator("#review-saved").get_by_text("Saved.").wait_for()
    assert read_caption(chosen.path) == "my own words"
    page.keyboard.press("ArrowRight")
    page.locator("#review-line").get_by_text("4 of 4").wait_for()
    page.keyboard.press("ArrowLeft")
    page.locator("#review-line").get_by_text("3 of 4").wait_for()
    assert box.input_value() == "my own words"


@pytest.mark.slow
def test_the_import_button_says_that_it_uploads(open_page: Callable[..., Any], running: Any) -> None:
    running.home.create_project("a slow line")
    page = open_page()
    page.get_by_role("tab", name="2 · Dataset").click()
    button = page.locator("#dataset-choose")
    button.wait_for()
    page.wait_for_function("() => window.studioUploads && !document.querySelector('#loading-bar .pending')")
    held: list[Any] = []

    def hold(route: Any) -> None:
        held.append(route)

    page.route(re.compile(r"/upload$"), hold)
    files = [EXAMPLE_IMAGES / name for name in ("key.png", "owl.png")]
    with page.expect_request(re.compile(r"/upload$")):
        page.locator(".empty-state:visible input[type=file]").set_input_files(files)
    page.locator("#dataset-choose[data-uploading='uploading 2 files'][aria-busy=true]").wait_for()
    for route in held:
        route.continue_()
    page.locator("#dataset-report").get_by_text("2 images added").wait_for()
    assert page.locator("[data-uploading]").count() == 0


@pytest.mark.slow
def test_sections_fit_a_phone(open_page: Callable[..., Any], running: Any) -> None:
    project = running.home.create_project("phone")
    shutil.copy(EXAMPLE_IMAGES / "key.png", project.images_dir)
    page = open_page(size=(390, 844), dark=True)
    page.get_by_role("tab", name="2 · Dataset").click()
    for name in ("Import", "Curate", "Tag", "Review"):
        page.locator("#dataset-section").get_by_text(name, exact=True).click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
