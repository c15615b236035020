"""Review, Captions and Statistics: edits can be undone, reviewed images stay marked, tags filter the grid."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.manifest import Manifest, scan_stamps
from lora_studio.dataset.review import review_status
from lora_studio.dataset.scan import scan
from lora_studio.example import EXAMPLE_IMAGES
from lora_studio.ui.dataset.gallery_handlers import GalleryHandlers
from lora_studio.ui.dataset.handlers import CaptionHandlers
from lora_studio.ui.dataset.tab import DatasetTab
from lora_studio.workspace.project import Project, ProjectInfo
from tests.support.captioned_images import CAPTIONS, TRIGGER, add_captioned_images
from tests.support.dataset_page import captions, shown
from tests.support.interface import Interface, error_code


@pytest.mark.parametrize(
    ("pick", "caption", "message"),
    [
        ("drop:ink", f"{TRIGGER}, guitar", "Removed ink."),
        ("add: red,  blue", f"{TRIGGER}, guitar, ink, red, blue", "Added red, blue."),
        ("move:1:ink", f"{TRIGGER}, ink, guitar", "Moved ink."),
        ("drop:key", f"{TRIGGER}, guitar, ink", "No change."),
    ],
)
def test_chip_edits_the_caption_and_undo_restores_it(
    project: Project, interface: Interface, pick: str, caption: str, message: str
) -> None:
    updates = interface.call(CaptionHandlers.chip_clicked, pick=pick)
    assert captions(project)[0] == caption
    assert interface.contents_of("review_caption") == caption
    assert message in updates["review_saved"]
    assert re.findall(r'data-tag="([^"]+)"', updates["review_chips"]) == caption.split(", ")
    if message != "No change.":
        updates = interface.call(CaptionHandlers.undo)
        assert "1 caption changed" in updates["dataset_message"]
        assert interface.contents_of("review_caption") == CAPTIONS["guitar.png"]
    assert captions(project) == list(CAPTIONS.values())


@pytest.mark.parametrize("pick", ["", "drop:", "move:x:ink", "move:1:", "add: , ", "fix:untidy", "move:9999999:ink"])
def test_unknown_request_of_a_chip_is_refused(project: Project, interface: Interface, pick: str) -> None:
    assert error_code(interface.call(CaptionHandlers.chip_clicked, pick=pick)["dataset_notice"]) == "pick"
    assert captions(project) == list(CAPTIONS.values())


def test_marks_of_reviewed_images_survive_a_scan_and_a_reload(project: Project, interface: Interface) -> None:
    updates = interface.call(CaptionHandlers.mark_and_show_next)
    assert "1 of 3 reviewed" in updates["review_progress"]
    assert "key.png" in updates["review_line"]
    report = scan(project.dataset_dir)
    stamps = scan_stamps(info.path for info in report.images)
    Manifest.of_scan(project.dataset_dir, report, stamps).save_scan(project.path)
    updates = interface.open_project(project.name)
    assert "1 of 3 reviewed" in updates["review_progress"]
    grid = interface.call(GalleryHandlers.filter_picked, pick="filter:Unreviewed")["dataset_grid"]
    assert shown(grid) == ["key.png", "umbrella.png"]
    interface.call(GalleryHandlers.filter_picked, pick="all")
    updates = interface.call(CaptionHandlers.toggle_reviewed)
    assert "0 of 3 reviewed" in updates["review_progress"]
    assert "guitar.png" in updates["review_line"]


def test_images_whose_captions_change_are_reviewed_again_unless_changed_in_review(
    project: Project, interface: Interface
) -> None:
    def reviewed() -> list[str]:
        review = review_status(project.dataset_dir)
        assert f"{len(review.reviewed)} of 3 reviewed" in interface.contents_of("review_progress")
        return [path.name for path in review.reviewed]

    for _ in CAPTIONS:
        interface.call(CaptionHandlers.mark_and_show_next)
    interface.call(DatasetTab.section_changed, dataset_section="Captions")
    interface.call(CaptionHandlers.finding_clicked, pick="fix:trigger_missing")
    assert reviewed() == ["guitar.png", "key.png"]
    interface.call(CaptionHandlers.undo)
    assert reviewed() == list(CAPTIONS)
    interface.call(CaptionHandlers.chip_clicked, pick="add:red")
    interface.call(CaptionHandlers.save_caption, review_caption="guitar, blue")
    assert captions(project)[0] == "guitar, blue"
    assert reviewed() == list(CAPTIONS)


def test_keys_of_one_request_act_in_order(project: Project, interface: Interface) -> None:
    presses = ["next", "mark", "previous", "previous", "toggle", "next"]
    shown = interface.call(DatasetTab.keys_pressed, presses=presses)
    assert [path.name for path in review_status(project.dataset_dir).reviewed] == ["guitar.png", "key.png"]
    assert "key.png" in shown["review_line"]
    assert interface.contents_of("review_caption") == CAPTIONS["key.png"]
    interface.call(DatasetTab.keys_pressed, presses=["aside", "aside", "undo"])
    assert [image.name for image in find_images(project.dataset_dir)] == ["guitar.png"]


def test_a_typed_caption_is_saved_by_the_first_key(project: Project, interface: Interface) -> None:
    interface.call(DatasetTab.keys_pressed, presses=["next", "undo", "undo"], review_caption="mine")
    assert captions(project) == list(CAPTIONS.values())
    interface.call(DatasetTab.keys_pressed, presses=["next", "next"])
    interface.call(DatasetTab.keys_pressed, presses=["next"], review_caption="mine")
    assert "mine" in captions(project)


def test_an_error_ends_the_keys_of_a_request(project: Project, interface: Interface) -> None:
    (project.images_dir / "guitar.txt").write_text("from elsewhere", "utf-8")
    shown = interface.call(DatasetTab.keys_pressed, presses=["next", "mark", "next"], review_caption="mine")
    assert error_code(shown["dataset_notice"]) == "caption_changed"
    assert "guitar.png" in shown["review_line"]
    assert captions(project)[0] == "from elsewhere"
    assert not review_status(project.dataset_dir).reviewed
    interface.call(DatasetTab.keys_pressed, presses=["next"])
    assert captions(project)[0] == "mine"


@pytest.mark.parametrize("presses", ["next", [["next"]], [7], {"next": 1}, ["next", "format"], ["next"] * 10_000])
def test_unknown_keys_are_refused(project: Project, interface: Interface, presses: object) -> None:
    assert error_code(interface.call(DatasetTab.keys_pressed, presses=presses)["dataset_notice"]) == "pick"
    assert not review_status(project.dataset_dir).reviewed


def test_grid_is_filtered_by_a_tag(project: Project, interface: Interface) -> None:
    def left(tag: str, side: str) -> list[str]:
        return shown(
            interface.call(CaptionHandlers.filter_changed, dataset_filter_tag=tag, dataset_filter_side=side)[
                "dataset_grid"
            ]
        )

    assert left(" Key ", "with tag") == ["key.png"]
    assert left("ke", "with tag") == []
    assert left("key", "without tag") == ["guitar.png", "umbrella.png"]
    assert left("", "without tag") == list(CAPTIONS)


def test_bulk_edit_is_previewed_applied_and_undone(project: Project, interface: Interface) -> None:
    interface.call(DatasetTab.section_changed, dataset_section="Captions")
    form = {"bulk_action": "Replace", "bulk_first": "ink", "bulk_second": "paper, pen", "bulk_scope": "All images"}
    assert error_code(interface.call(CaptionHandlers.apply, **form)["dataset_notice"]) == "no_preview"
    updates = interface.call(CaptionHandlers.preview, **form)
    assert updates["bulk_apply"] == {"value": "Apply to 3 captions", "interactive": True}
    assert updates["bulk_changes"].count("<del>ink</del>") == 3
    assert captions(project) == list(CAPTIONS.values())
    assert error_code(interface.call(CaptionHandlers.apply, bulk_second="pen")["dataset_notice"]) == "other_preview"
    updates = interface.call(CaptionHandlers.apply, bulk_second="paper, pen")
    assert "3 captions changed." in updates["dataset_message"]
    assert captions(project)[2] == "umbrella, paper, pen"
    assert "Replaced ink with paper, pen" in updates["captions_history"]
    interface.call(CaptionHandlers.undo)
    assert captions(project) == list(CAPTIONS.values())
    interface.call(CaptionHandlers.redo)
    assert captions(project)[0] == f"{TRIGGER}, guitar, paper, pen"


def test_bulk_edit_does_not_keep_its_text_for_another_project(
    project: Project, interface: Interface, original: Project
) -> None:
    interface.call(CaptionHandlers.preview, bulk_action="Add", bulk_first="masterpiece", bulk_scope="All images")
    interface.open_project(original.name)
    assert interface.contents_of("bulk_first") == ""


def test_bulk_edit_can_be_limited_to_filtered_images(project: Project, interface: Interface) -> None:
    interface.call(DatasetTab.section_changed, dataset_section="Captions")
    interface.call(CaptionHandlers.filter_changed, dataset_filter_tag="umbrella", dataset_filter_side="with tag")
    form = {"bulk_action": "Regular expression", "bulk_first": r"(\w+), ink", "bulk_second": r"\1 in ink"}
    interface.call(CaptionHandlers.preview, bulk_scope="Filtered images", **form)
    interface.call(CaptionHandlers.apply)
    assert captions(project) == [CAPTIONS["guitar.png"], CAPTIONS["key.png"], "umbrella in ink"]
    interface.call(CaptionHandlers.filter_changed, dataset_filter_tag="")
    assert error_code(interface.call(CaptionHandlers.preview, bulk_first="(")["dataset_notice"]) == "regex"
    updates = interface.call(CaptionHandlers.preview, bulk_first="a", dataset_filter_tag="no such")
    assert error_code(updates["dataset_notice"]) == "nothing"


def test_finding_filters_its_images_and_is_fixed(project: Project, interface: Interface) -> None:
    updates = interface.call(DatasetTab.section_changed, dataset_section="Captions")
    assert "1 caption without inkstamp_hc" in updates["captions_findings"]
    updates = interface.call(CaptionHandlers.finding_clicked, pick="finding:trigger_missing")
    assert shown(updates["dataset_grid"]) == ["umbrella.png"]
    updates = interface.call(CaptionHandlers.finding_clicked, pick="fix:trigger_missing")
    assert captions(project)[2] == f"{TRIGGER}, umbrella, ink"
    assert shown(updates["dataset_grid"]) == list(CAPTIONS)
    assert "trigger" not in updates["captions_findings"]
    updates = interface.call(CaptionHandlers.finding_clicked, pick="fix:trigger_missing")
    assert error_code(updates["dataset_notice"])
    interface.call(CaptionHandlers.undo)
    assert captions(project) == list(CAPTIONS.values())


def test_tags_of_the_statistics_filter_the_grid(project: Project, interface: Interface) -> None:
    updates = interface.call(DatasetTab.section_changed, dataset_section="Statistics")
    assert re.findall(r'data-pick="tag:([^"]+)"', updates["statistics_tags"])[:2] == ["ink", TRIGGER]
    assert f"occur with {TRIGGER}" in updates["statistics_co_occurrence"]
    assert "No validation split" in updates["statistics_split"]
    updates = interface.call(CaptionHandlers.tag_clicked, pick=f"tag:{TRIGGER}")
    assert shown(updates["dataset_grid"]) == ["guitar.png", "key.png"]
    updates = interface.call(CaptionHandlers.tag_clicked, pick="tag:umbrella")
    assert "occur with umbrella" in updates["statistics_co_occurrence"]
    assert shown(updates["dataset_grid"]) == ["umbrella.png"]
    assert interface.contents_of("dataset_filter_tag") == "umbrella"


@pytest.mark.slow
def test_keys_work_after_clicks_and_during_requests(open_page: Callable[..., Any], running: Any) -> None:
    """No key of Review or Curate is lost after a click on a section, filter or thumbnail, or during a request."""
    names = sorted(path.name for path in EXAMPLE_IMAGES.glob("*.png"))[:9]
    texts = {name: f"{TRIGGER}, sailboat, smile {index}" for index, name in enumerate(names)}
    project = add_captioned_images(
        running.home.create_project("a quick hand", ProjectInfo(trigger_word=TRIGGER)), texts
    )
    page = open_page()
    page.get_by_role("tab", name="2 · Dataset").click()
    line = page.locator("#review-line")

    def section(name: str) -> None:
        page.locator("#dataset-section").get_by_text(name, exact=True).click()

    section("Captions")
    section("Review")
    line.get_by_text("1 of 9").wait_for()
    for _ in range(7):
        page.keyboard.press("j")
    line.get_by_text("8 of 9").wait_for()
    page.keyboard.press("Enter")
    line.get_by_text("9 of 9").wait_for()
    page.locator("#dataset-filter").get_by_role("button", name="Unreviewed").click()
    page.locator("#dataset-grid").get_by_text("1–8 of 8 images").wait_for()
    for key in ("Enter", " "):
        page.keyboard.press(key)
    page.locator("#review-progress").get_by_text("3 of 9 reviewed").wait_for()
    line.get_by_text("2 of 9").wait_for()
    page.locator("#dataset-filter").get_by_role("button", name="All").click()
    page.locator("#dataset-grid").get_by_text("1–9 of 9 images").wait_for()
    page.locator(f"#dataset-grid .shot[title^='{names[4]}']").click()
    for key in ("j", "Enter"):
        page.keyboard.press(key)
    line.get_by_text("7 of 9").wait_for()
    marks = Manifest.of(project.dataset_dir)
    reviewed = {path.name for path, info in marks.infos.items() if info.sha256 in marks.marks.reviewed}
    assert reviewed == {names[index] for index in (7, 8, 0, 5)}

    page.keyboard.press("a")
    page.keyboard.type("smil")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator("#review-chips [data-tag='smile 0']").wait_for()
    page.keyboard.press("Escape")
    assert captions(project)[6] == f"{texts[names[6]]}, smile 0"

    section("Curate")
    page.locator("#dataset-groups .group").wait_for()
    page.keyboard.press("ArrowDown")
    page.locator("#dataset-flagged .here, #dataset-groups .here").wait_for()


@pytest.mark.slow
def test_captions_are_edited_with_the_keyboard_and_marks_survive_a_reload(
    open_page: Callable[..., Any], running: Any
) -> None:
    """Keys add tags, mark as reviewed and undo; the mouse fixes a finding and applies a bulk edit; all is saved."""
    project = add_captioned_images(running.home.create_project("a keyboard", ProjectInfo(trigger_word=TRIGGER)))
    page = open_page()

    def section(page: Any, name: str) -> None:
        page.get_by_role("tab", name="2 · Dataset").click()
        page.locator("#dataset-section").get_by_text(name, exact=True).click()

    def undo() -> None:
        page.locator("#captions-undo").click()
        page.locator("#dataset-message").get_by_text("Undone").wait_for()

    section(page, "Review")
    page.locator("#review-line").get_by_text("1 of 3").wait_for()
    page.locator("#review-line").click()
    page.keyboard.press("a")
    page.keyboard.type("um")
    page.locator("#review-suggestions").get_by_role("option", name="umbrella").wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator("#review-chips [data-tag=umbrella]").wait_for()
    page.keyboard.press("Escape")
    assert captions(project)[0] == f"{CAPTIONS['guitar.png']}, umbrella"
    page.locator("#review-chips [data-tag=umbrella]").focus()
    page.keyboard.press("Alt+ArrowLeft")
    page.locator("#review-saved").get_by_text("Moved umbrella.").wait_for()
    page.keyboard.press("Delete")
    page.locator("#review-saved").get_by_text("Removed umbrella.").wait_for()
    page.locator("#review-line").click()
    page.keyboard.press("Control+z")
    page.locator("#review-chips [data-tag=umbrella]").wait_for()
    assert captions(project)[0] == f"{TRIGGER}, guitar, umbrella, ink"
    page.keyboard.press("Enter")
    page.locator("#review-progress").get_by_text("1 of 3 reviewed").wait_for()
    page.locator("#review-line").get_by_text("2 of 3").wait_for()

    section(page, "Captions")
    page.locator("#captions-findings").get_by_role("button", name="Add it at the start").click()
    page.locator("#dataset-message").get_by_text("1 caption changed.").wait_for()
    assert captions(project)[2] == f"{TRIGGER}, umbrella, ink"
    undo()
    page.locator("#bulk-action").get_by_text("Replace", exact=True).click()
    page.locator("#bulk-first input, #bulk-first textarea").fill("ink")
    page.locator("#bulk-second input, #bulk-second textarea").fill("pen")
    page.locator("#bulk-preview").click()
    page.get_by_role("button", name="Apply to 3 captions").click()
    page.locator("#dataset-message").get_by_text("3 captions changed.").wait_for()
    assert captions(project)[2] == "umbrella, pen"
    undo()
    assert captions(project)[2] == CAPTIONS["umbrella.png"]

    other = open_page()
    section(other, "Review")
    other.locator("#review-progress").get_by_text("1 of 3 reviewed").wait_for()


@pytest.mark.slow
def test_keys_that_wait_for_an_answer_become_one_request(open_page: Callable[..., Any], running: Any) -> None:
    names = sorted(path.name for path in EXAMPLE_IMAGES.glob("*.png"))[:9]
    project = add_captioned_images(
        running.home.create_project("a fast hand", ProjectInfo(trigger_word=TRIGGER)),
        {name: f"{TRIGGER}, {name}" for name in names},
    )
    page = open_page()
    page.get_by_role("tab", name="2 · Dataset").click()
    page.locator("#dataset-section").get_by_text("Review", exact=True).click()
    page.locator("#review-line").get_by_text("1 of 9").wait_for()
    page.wait_for_function("() => window.studioReviewKeys?.send && !document.querySelector('#loading-bar .pending')")
    sent: list[list[str]] = []

    def collect(request: Any) -> None:
        event = request.post_data_json["event_data"] if "/queue/join" in request.url else None
        if isinstance(event, dict) and "presses" in event:
            sent.append(event["presses"])

    page.on("request", collect)
    keys = ["j", "Enter", "j", "k", "Enter", "r", "j", "r", "j"]
    press = "key => document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }))"
    page.evaluate(f"keys => keys.forEach({press})", keys)
    page.locator("#review-progress").get_by_text("4 of 9 reviewed").wait_for()
    page.locator("#review-line").get_by_text("6 of 9").wait_for()
    assert len(sent) == 2
    assert [*sent[0], *sent[1]] == ["next", "mark", "next", "previous", "mark", "toggle", "next", "toggle", "next"]
    reviewed = [path.name for path in review_status(project.dataset_dir).reviewed]
    assert reviewed == [names[index] for index in (1, 2, 3, 4)]
