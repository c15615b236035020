"""Review, Captions and Statistics: edits can be undone, reviewed images stay marked, tags filter the grid."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_studio.dataset.captions.text import read_caption
from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.manifest import Manifest, scan_stamps
from lora_studio.dataset.scan import scan
from lora_studio.dataset.tagging.cache import TagCache
from lora_studio.dataset.tagging.catalogue import find_tagger
from lora_studio.dataset.tagging.interface import Prediction
from lora_studio.dataset.tagging.labels import GENERAL
from lora_studio.example import EXAMPLE_IMAGES
from lora_studio.ui.dataset import captions as dataset_captions
from lora_studio.ui.dataset import statistics as dataset_statistics
from lora_studio.ui.dataset.chips import suggestion_list, tag_chips
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.handlers import CaptionHandlers
from lora_studio.ui.dataset.suggestions import Suggestion, TagSuggester
from lora_studio.ui.dataset.tab import DatasetTab
from lora_studio.workspace.project import Home, Project, ProjectInfo
from tests.support.interface import Interface, error_code
from tests.support.tiny_taggers import save_tiny_wd

TRIGGER = "inkstamp_hc"
CAPTIONS = {
    "guitar.png": f"{TRIGGER}, guitar, ink",
    "key.png": f"{TRIGGER}, key, ink",
    "umbrella.png": "umbrella, ink",
}


def fill(project: Project) -> Project:
    """Add three captioned images and a scan of them."""
    for name, caption in CAPTIONS.items():
        image = project.images_dir / name
        shutil.copy(EXAMPLE_IMAGES / name, image)
        image.with_suffix(".txt").write_text(caption, "utf-8")
    images = find_images(project.dataset_dir)
    stamps = scan_stamps(images)
    Manifest.of_scan(project.dataset_dir, scan(project.dataset_dir), stamps).save_scan(project.path)
    return project


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("studio") / "home")


@pytest.fixture(scope="module")
def interface(home: Home) -> Iterator[Interface]:
    built = Interface(home)
    yield built
    built.blocks.close(verbose=False)


@pytest.fixture(scope="module")
def original(home: Home) -> Project:
    return fill(home.create_project("original", ProjectInfo(trigger_word=TRIGGER)))


@pytest.fixture
def project(home: Home, interface: Interface, original: Project) -> Project:
    """A copy of that project, opened in the tab, in Review."""
    project = home.duplicate_project(original.name, f"ink {len(home.projects())}")
    interface.open_project(project.name)
    interface.call(DatasetTab.section_changed, dataset_section="Review")
    return project


def captions(project: Project) -> list[str | None]:
    return [read_caption(image) for image in find_images(project.dataset_dir)]


def shown(grid: str) -> list[str]:
    return [title.split("\n")[0] for title in re.findall(r'aria-pressed="\w+" title="([^"]+)"', grid)]


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
    assert shown(interface.call(CaptionHandlers.filter_changed, dataset_filter="Unreviewed")["dataset_grid"]) == [
        "key.png",
        "umbrella.png",
    ]
    interface.call(CaptionHandlers.filter_changed, dataset_filter="All")
    updates = interface.call(CaptionHandlers.toggle_reviewed)
    assert "0 of 3 reviewed" in updates["review_progress"]
    assert "guitar.png" in updates["review_line"]


def test_grid_is_filtered_by_a_tag(project: Project, interface: Interface) -> None:
    def left(tag: str, side: str) -> list[str]:
        return shown(
            interface.call(CaptionHandlers.filter_changed, dataset_filter_tag=tag, dataset_filter_side=side)[
                "dataset_grid"
            ]
        )

    assert left(" Key ", "contains") == ["key.png"]
    assert left("ke", "contains") == []
    assert left("key", "does not contain") == ["guitar.png", "umbrella.png"]
    assert left("", "does not contain") == list(CAPTIONS)


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


def test_bulk_edit_can_be_limited_to_filtered_images(project: Project, interface: Interface) -> None:
    interface.call(DatasetTab.section_changed, dataset_section="Captions")
    interface.call(CaptionHandlers.filter_changed, dataset_filter_tag="umbrella", dataset_filter_side="contains")
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
    assert error_code(updates["dataset_notice"]) == "mend"
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


CHANGES: dict[str, Callable[[Project], object]] = {
    "a caption in place, as long as before": lambda project: edit(project, "key.txt", "key", "kez"),
    "another": lambda project: edit(project, "key.txt", "kez", "key"),
    "a caption less": lambda project: (project.images_dir / "key.txt").unlink(),
    "an older caption beside": lambda project: (project.images_dir / "key.caption").write_text("old"),
    "a tick": lambda project: mark_first(project, "reviewed"),
    "no tick": lambda project: mark_first(project, "unreviewed"),
    "a mark": lambda project: mark_first(project, "kept"),
    "another trigger word": lambda project: project.save_info(ProjectInfo(trigger_word="ink")),
    "an image more": lambda project: shutil.copy(EXAMPLE_IMAGES / "owl.png", project.images_dir),
    "an image less": lambda project: (project.images_dir / "umbrella.png").unlink(),
    "another set": lambda project: (project.images_dir.parent / "2_more").mkdir(),
}


def edit(project: Project, name: str, old: str, new: str) -> None:
    file = project.images_dir / name
    file.write_text(file.read_text("utf-8").replace(old, new), "utf-8")


def mark_first(project: Project, mark: str) -> None:
    """Mark the first image of a project, as another program would."""
    contents = Contents.of(project)
    info = contents.items[0].info
    assert info is not None
    if mark == "kept":
        manifest = contents.manifest.with_kept(info.sha256)
    else:
        manifest = contents.manifest.with_reviewed([info.sha256], reviewed=mark == "reviewed")
    manifest.save_marks(project.path)


def test_cached_contents_equal_those_on_disk(home: Home, original: Project) -> None:
    project = home.duplicate_project(original.name, "changing")
    for what, change in CHANGES.items():
        before = Contents.of(project)
        change(project)
        now, there = Contents.of(project), Contents.load(project)
        assert (now.items, now.trigger, now.manifest) == (there.items, there.trigger, there.manifest), what
        assert Contents.of(project) is now
        if what == "a tick":
            assert now.items[1] is before.items[1]


def test_after_change_reads_only_the_changed_images(home: Home, original: Project) -> None:
    project = home.duplicate_project(original.name, "set_aside")
    for file in project.images_dir.glob("*.txt"):
        os.utime(file, (1, 1))  # whoever changed within the last second is looked at in any case
    contents = Contents.of(project)
    image = contents.items[0].path
    moved = [path.rename(project.path / path.name) for path in (image, image.with_suffix(".txt"))]
    edit(project, "key.txt", "key", "lock")  # by another program
    left = contents.after_change([image])
    assert [item.caption for item in left.items] == [CAPTIONS["key.png"], CAPTIONS["umbrella.png"]]
    there = Contents.of(project)
    assert [item.caption for item in there.items] == [f"{TRIGGER}, lock, ink", CAPTIONS["umbrella.png"]]
    for path in moved:
        path.rename(image.parent / path.name)
    back = there.after_change([image])
    assert back.items == Contents.load(project).items
    assert back.items[1] is there.items[0]


def test_suggests_tags_of_the_dataset(original: Project, home: Home) -> None:
    contents = Contents.of(original)
    image = contents.by_path[original.images_dir / "key.png"]
    suggester = TagSuggester(home)
    assert [word.tag for word in suggester.suggest(contents, "i", image)] == []
    assert suggester.suggest(contents, "I", None)[0] == Suggestion("ink", 3)
    assert [word.tag for word in suggester.suggest(contents, "u", image)] == ["umbrella"]
    assert suggester.suggest(contents, " ", image) == []


def test_suggests_tags_of_the_tagger_and_returns_its_confidences(original: Project, tmp_path: Path) -> None:
    contents = Contents.of(original)
    image = contents.by_path[original.images_dir / "key.png"]
    assert image.info
    home = Home(tmp_path / "home")
    suggester = TagSuggester(home)
    assert not suggester.confidences(image)
    cache = TagCache.of(find_tagger(str(save_tiny_wd(tmp_path / "wd")), home=home), home)
    number, label = next((n, label) for n, label in enumerate(cache.labels) if label.category == GENERAL)
    sight = Prediction(np.array([number], np.uint16), np.array([0.5], np.float16), "", np.ones(2, np.float16))
    cache.add(image.info.sha256, sight)
    cache.flush()
    assert suggester.confidences(image) == {label.name: 0.5}
    assert Suggestion(label.name, 0) in suggester.suggest(contents, label.name, image)


def test_chips_show_confidences_and_truncation() -> None:
    caption = ", ".join([TRIGGER, *(f"tag number {number}" for number in range(20))])
    chips = tag_chips(caption, TRIGGER, {"tag number 0": 0.95, "tag number 1": 0.5, "tag number 2": 0.2})
    assert re.findall(r'<li class="chip (\w+)"', chips) == ["trigger", "high", "middle", "low"]
    assert "<s>" not in chips.split('data-tag="tag number 9"')[0]
    assert "<span><s>tag number 19</s></span>" in chips


def test_hostile_captions_are_escaped(home: Home) -> None:
    project = home.create_project("hostile", ProjectInfo(trigger_word="<b>"))
    for name in ("<i>.png", "b.png"):
        image = project.images_dir / name
        shutil.copy(EXAMPLE_IMAGES / "key.png", image)
        image.with_suffix(".txt").write_text('<script>alert(1)</script>, "><u>, day, night', "utf-8")
    contents = Contents.of(project)
    plan = dataset_captions.plan_edit([item.path for item in contents.items], dataset_captions.edits.remove(["day"]))
    frequencies = contents.captions.tag_table.frequencies
    html = "".join(
        [
            tag_chips(contents.items[0].caption or "", "<b>", {}),
            suggestion_list([Suggestion("<em>", 1)]),
            dataset_captions.finding_list(contents.captions.findings),
            dataset_captions.plan_table(plan),
            dataset_statistics.tag_table(frequencies, "<u>", 0),
            dataset_statistics.co_occurrence_table("<s>", frequencies),
        ]
    )
    for name in ("script", "u", "b", "i", "em", "s"):
        assert f"<{name}>" not in html
    assert "&lt;script&gt;" in html


def test_captions_are_edited_with_the_keyboard_and_marks_survive_a_reload(
    open_page: Callable[..., Any], running: Any
) -> None:
    """Keys add tags, mark as reviewed and undo; the mouse fixes a finding and applies a bulk edit; all is saved."""
    project = fill(running.home.create_project("keys", ProjectInfo(trigger_word=TRIGGER)))
    page = open_page()

    def section(page: Any, name: str) -> None:
        page.get_by_role("tab", name="2 · Dataset").click()
        page.locator("#dataset-section").get_by_text(name, exact=True).click()

    def undo() -> None:
        page.locator("#captions-undo").click()
        page.locator("#dataset-message").get_by_text("Undone").wait_for()

    section(page, "Review")
    page.locator("#review-line").get_by_text("1 of 3").wait_for()
    page.locator("#review-picture").click()
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
    page.locator("#review-picture").click()
    page.keyboard.press("Control+z")
    page.locator("#review-chips [data-tag=umbrella]").wait_for()
    assert captions(project)[0] == f"{TRIGGER}, guitar, umbrella, ink"
    page.keyboard.press("Enter")
    page.locator("#review-progress").get_by_text("1 of 3 reviewed").wait_for()
    page.locator("#review-line").get_by_text("2 of 3").wait_for()

    section(page, "Captions")
    page.locator("#captions-findings").get_by_role("button", name="Put it first, once").click()
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
