"""The grid of Dataset: filters that combine, orders, selected images, and the large view of an image."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from lora_studio.dataset.image_edits import edits_of
from lora_studio.dataset.images.crop import crop_to_bucket
from lora_studio.dataset.images.decode import decode, file_sha256, find_images
from lora_studio.dataset.marks import load_marks
from lora_studio.training.data.dataset import read_dataset
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.curate import CurationHandlers
from lora_studio.ui.dataset.gallery_handlers import GalleryHandlers
from lora_studio.ui.dataset.handlers import CaptionHandlers
from lora_studio.ui.dataset.tab import DatasetTab
from lora_studio.ui.dataset.viewer import ViewerHandlers
from lora_studio.workspace.job_folder import IMAGE_LOSSES_FILE
from lora_studio.workspace.project import Project, ProjectInfo
from tests.support.captioned_images import CAPTIONS, TRIGGER, add_captioned_images
from tests.support.dataset_page import captions, shown
from tests.support.interface import Interface, error_code
from tests.support.jobs import make_run

NAMES = list(CAPTIONS)


def counts(bar: str) -> dict[str, int]:
    """Return the figures of the filters by their text."""
    found = re.findall(r'<button[^>]*>([^<]+) <span class="count">([\d,]+)</span>', bar)
    return {text.strip(): int(count) for text, count in found}


def id_of(project: Project, name: str) -> str:
    return next(item.id for item in Contents.of(project).items if item.name == name)


def filtered(interface: Interface, *picks: str) -> dict[str, Any]:
    interface.call(GalleryHandlers.filter_picked, pick="all")
    updates: dict[str, Any] = {}
    for pick in picks:
        updates = interface.call(GalleryHandlers.filter_picked, pick=pick)
    return updates


def test_filters_combine_and_show_how_many_images_they_leave(project: Project, interface: Interface) -> None:
    interface.call(CaptionHandlers.mark_and_show_next)
    updates = filtered(interface, "filter:Unreviewed")
    assert shown(updates["dataset_grid"]) == ["key.png", "umbrella.png"]
    figures = counts(updates["dataset_filter"])
    assert {name: figures[name] for name in ("All", "No trigger word", "Unreviewed")} == {
        "All": 3,
        "No trigger word": 1,
        "Unreviewed": 2,
    }
    updates = filtered(interface, "filter:Unreviewed", "filter:No trigger word")
    assert shown(updates["dataset_grid"]) == ["umbrella.png"]
    assert updates["dataset_filter"].count('aria-pressed="true"') == 2
    updates = interface.call(GalleryHandlers.filter_picked, pick="filter:No trigger word")
    assert shown(updates["dataset_grid"]) == ["key.png", "umbrella.png"]


def test_sets_are_shown_with_their_repeats_and_filter_the_grid(project: Project, interface: Interface) -> None:
    more = project.dataset_dir / "3_more"
    more.mkdir()
    for suffix in (".png", ".txt"):
        (project.images_dir / f"key{suffix}").rename(more / f"key{suffix}")
    updates = filtered(interface, "set:3_more")
    assert shown(updates["dataset_grid"]) == ["key.png"]
    figures = counts(updates["dataset_filter"])
    assert figures["3_more · 3 repeats"] == 1
    assert figures[f"{project.images_dir.name} · {project.images_dir.name.split('_')[0]} repeats"] == 2
    updates = interface.call(GalleryHandlers.filter_picked, pick="set:3_more")
    assert len(shown(updates["dataset_grid"])) == 3


def test_images_are_sorted_and_stepped_through_by_the_losses_of_the_last_run(
    project: Project, interface: Interface
) -> None:
    run = make_run(project)
    ratios = {"guitar.png": 0.8, "key.png": 1.4, "umbrella.png": 1.0}
    entries = [
        {
            "image": str(project.images_dir / name),
            "samples": 9,
            "loss": 0.1,
            "ratio": ratio,
            "significant": name == "key.png",
        }
        for name, ratio in ratios.items()
    ]
    (run.path / IMAGE_LOSSES_FILE).write_text(json.dumps({"epoch": 1, "images": entries}), "utf-8")
    updates = interface.call(GalleryHandlers.sort_changed, dataset_sort="Highest loss first")
    assert shown(updates["dataset_grid"]) == ["key.png", "umbrella.png", "guitar.png"]
    assert ">+40%<" in updates["dataset_grid"]
    interface.call(CurationHandlers.button_clicked, pick=f"show:{id_of(project, 'key.png')}")
    assert "umbrella.png" in interface.call(CaptionHandlers.show_next)["review_line"]
    assert shown(filtered(interface, "filter:High loss")["dataset_grid"]) == ["key.png"]
    interface.call(GalleryHandlers.sort_changed, dataset_sort="By name")


def test_selected_images_are_set_aside_and_restored(project: Project, interface: Interface) -> None:
    ids = ",".join(id_of(project, name) for name in ("guitar.png", "umbrella.png"))
    updates = interface.call(GalleryHandlers.selection_acted, pick=f"set_aside:{ids}")
    assert shown(updates["dataset_grid"]) == ["key.png"]
    updates = filtered(interface, "filter:Set aside")
    assert sorted(shown(updates["dataset_grid"])) == ["guitar.png", "umbrella.png"]
    aside = re.findall(r'class="cell" data-id="(\w+)"', updates["dataset_grid"])
    interface.call(GalleryHandlers.selection_acted, pick=f"restore:{aside[0]}")
    assert len(find_images(project.dataset_dir)) == 2
    interface.call(GalleryHandlers.selection_acted, pick="restore:*")
    assert [path.name for path in find_images(project.dataset_dir)] == NAMES
    assert captions(project) == list(CAPTIONS.values())
    filtered(interface)


def test_tags_of_all_filtered_images_change_in_one_edit(project: Project, interface: Interface) -> None:
    filtered(interface, "filter:No trigger word")
    updates = interface.call(GalleryHandlers.selection_acted, pick="add_tag:*:red, a: b")
    assert "1 caption changed" in updates["dataset_message"]
    assert captions(project)[2] == "umbrella, ink, red, a: b"
    filtered(interface)
    interface.call(GalleryHandlers.selection_acted, pick="remove_tag:*:ink")
    assert captions(project) == [f"{TRIGGER}, guitar", f"{TRIGGER}, key", "umbrella, red, a: b"]
    for _ in range(2):
        interface.call(CaptionHandlers.undo)
    assert captions(project) == list(CAPTIONS.values())


def test_selected_images_are_kept_and_the_marks_are_undone(project: Project, interface: Interface) -> None:
    ids = ",".join(id_of(project, name) for name in NAMES[:2])
    updates = interface.call(GalleryHandlers.selection_acted, pick=f"keep:{ids}")
    assert len(load_marks(project.path).kept) == 2
    undo = re.search(r'data-pick="(unkeep:[\w,]+)"', updates["dataset_message"])
    assert undo
    interface.call(CurationHandlers.button_clicked, pick=undo[1])
    assert not load_marks(project.path).kept


@pytest.mark.parametrize("pick", ["set_aside:", "set_aside:gone", "format:*", "", "add_tag:*:", "remove_tag:*: , "])
def test_an_unknown_request_for_selected_images_changes_nothing(
    project: Project, interface: Interface, pick: str
) -> None:
    assert error_code(interface.call(GalleryHandlers.selection_acted, pick=pick)["dataset_notice"])
    assert captions(project) == list(CAPTIONS.values())


@pytest.mark.parametrize("pick", ["filter:All of them", "sets:a", ""])
def test_an_unknown_filter_is_refused(project: Project, interface: Interface, pick: str) -> None:
    assert error_code(interface.call(GalleryHandlers.filter_picked, pick=pick)["dataset_notice"]) == "pick"


def test_the_large_view_rotates_crops_and_undoes(project: Project, interface: Interface) -> None:
    image = project.images_dir / "guitar.png"
    before, (width, height) = image.read_bytes(), decode(image).size
    assert 'role="dialog"' in interface.call(ViewerHandlers.viewer_acted, pick="view")["dataset_viewer"]
    updates = interface.call(ViewerHandlers.viewer_acted, pick="rotate:90")
    assert decode(image).size == (height, width)
    assert "1 edit" in updates["dataset_viewer"]
    interface.call(ViewerHandlers.viewer_acted, pick="crop:0,0,0.5,1")
    assert decode(image).size == (round(height / 2), width)
    interface.call(ViewerHandlers.viewer_acted, pick="undo")
    assert len(edits_of(project.dataset_dir, image)) == 1
    interface.call(ViewerHandlers.viewer_acted, pick="original")
    assert image.read_bytes() == before
    assert "key.png" in interface.call(ViewerHandlers.viewer_acted, pick="step:1")["dataset_viewer"]
    assert interface.call(ViewerHandlers.viewer_acted, pick="close")["dataset_viewer"] == ""


@pytest.mark.parametrize(
    "pick", ["rotate:45", "crop:0,0,1", "crop:a", "crop:0,0,2,1", "focus:2,0", "step:9", "undo", ""]
)
def test_an_unknown_request_of_the_large_view_changes_nothing(
    project: Project, interface: Interface, pick: str
) -> None:
    before = file_sha256(project.images_dir / "guitar.png")
    updates = interface.call(ViewerHandlers.viewer_acted, pick=pick)
    assert error_code(updates["dataset_notice"])
    assert file_sha256(project.images_dir / "guitar.png") == before


def test_the_preview_is_what_the_trainer_encodes(project: Project, interface: Interface) -> None:
    image = project.images_dir / "guitar.png"
    y, x = np.mgrid[0:600, 0:1100]
    Image.fromarray(np.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8)).save(image)
    add_captioned_images(project, {})  # scans again
    interface.open_project(project.name)
    interface.call(DatasetTab.section_changed, dataset_section="Review")
    interface.call(CurationHandlers.button_clicked, pick=f"show:{id_of(project, 'guitar.png')}")
    updates = interface.call(ViewerHandlers.viewer_acted, pick="focus:0.9,0.5")
    assert load_marks(project.path).focus == {file_sha256(image): (0.9, 0.5)}
    assert "left: 90.00%; top: 50.00%" in updates["dataset_viewer"]
    recipe = Contents.of(project).bucketing.recipe
    item = next(item for item in read_dataset(project.dataset_dir, recipe).items if item.path == image)
    assert item.placement.crop[0] == item.placement.scaled[0] - item.placement.bucket[0]
    url = re.search(r'class="trained-image" src="gradio_api/file=([^"]+)"', updates["dataset_viewer"])
    assert url
    preview = np.array(Image.open(Path(unquote(url[1]))).convert("RGB"), int)
    encoded = np.array(crop_to_bucket(decode(image).image, item.placement), int)
    assert preview.shape == encoded.shape
    assert np.abs(preview - encoded).mean() < 10, "the preview is a compressed copy"
    interface.call(ViewerHandlers.viewer_acted, pick="focus:")
    assert not load_marks(project.path).focus


@pytest.mark.slow
def test_images_are_selected_with_the_mouse_and_the_keyboard(open_page: Callable[..., Any], running: Any) -> None:
    project = add_captioned_images(
        running.home.create_project("selected", ProjectInfo(trigger_word=TRIGGER)), dict.fromkeys(NAMES, "ink")
    )
    page = open_page()
    page.get_by_role("tab", name="2 · Dataset").click()
    page.locator("#dataset-section").get_by_text("Review", exact=True).click()
    cells, selected = page.locator("#dataset-grid .shot"), page.locator("#dataset-grid .cell.selected")
    bar = page.locator("#dataset-selection .selection-bar")
    cells.nth(0).click(modifiers=["Control"])
    cells.nth(2).click(modifiers=["Shift"])
    bar.get_by_text("3 selected").wait_for()
    page.keyboard.press("Escape")
    bar.wait_for(state="hidden")
    cells.nth(1).focus()
    page.keyboard.press("x")
    page.keyboard.press("Shift+ArrowRight")
    assert selected.count() == 2
    bar.locator(".selection-tag").fill("red")
    bar.get_by_role("button", name="Add tag").click()
    page.locator("#dataset-message").get_by_text("2 captions changed").wait_for()
    assert captions(project) == ["ink", "ink, red", "ink, red"]
    bar.get_by_role("button", name="Set aside").click()
    page.locator("#dataset-message").get_by_text("2 images were set aside").wait_for()
    assert [path.name for path in find_images(project.dataset_dir)] == ["guitar.png"]


@pytest.mark.slow
def test_a_crop_is_drawn_and_a_focus_point_set_in_the_large_view(open_page: Callable[..., Any], running: Any) -> None:
    project = add_captioned_images(
        running.home.create_project("viewed", ProjectInfo(trigger_word=TRIGGER)), {"guitar.png": "ink"}
    )
    image = project.images_dir / "guitar.png"
    width, height = decode(image).size
    page = open_page()
    page.get_by_role("tab", name="2 · Dataset").click()
    page.locator("#dataset-section").get_by_text("Review", exact=True).click()
    page.locator("#review-picture button").click()
    viewer = page.locator("#dataset-viewer .viewer")
    viewer.wait_for()
    page.keyboard.press("f")
    viewer.locator("img").first.click(position={"x": 20, "y": 30})
    viewer.locator(".focus-point").wait_for()
    assert load_marks(project.path).focus
    page.keyboard.press("c")
    box = viewer.locator("img").first.bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 2, steps=4)
    page.mouse.up()
    page.keyboard.press("Enter")
    viewer.get_by_text("1 edit").wait_for()
    new_width, new_height = decode(image).size
    assert abs(new_width - width / 2) < 0.05 * width
    assert new_height > 0.9 * height
    page.keyboard.press("Escape")
    viewer.wait_for(state="detached")
