"""User text is escaped, large datasets are shown in pages, and tiles show only results of a finished scan."""

from __future__ import annotations

import re
import shutil

import pytest
from PIL import Image

from lora_studio.dataset.captions.edits import plan_edit, remove
from lora_studio.dataset.ingest.report import ImportReport, Refused, Skipped
from lora_studio.example import EXAMPLE_IMAGES
from lora_studio.ui.dataset.captions import finding_list, plan_table
from lora_studio.ui.dataset.chips import suggestion_list, tag_chips
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.curation_view import curation_status, set_aside_card
from lora_studio.ui.dataset.gallery import Gallery
from lora_studio.ui.dataset.review import caption_hint
from lora_studio.ui.dataset.statistics import co_occurrence_table, tag_table
from lora_studio.ui.dataset.suggestions import Suggestion
from lora_studio.ui.dataset.view import PAGE_SIZE, dataset_tiles, image_grid, import_card
from lora_studio.workspace.project import Home, ProjectInfo
from tests.support.captioned_images import add_captioned_images

HOSTILE = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("studio") / "home")


def test_hostile_names_and_captions_are_escaped(home: Home) -> None:
    project = home.create_project("hostile", ProjectInfo(trigger_word="<b>"))
    image = project.images_dir / HOSTILE
    Image.new("RGB", (600, 600)).save(image, "PNG")
    image.with_suffix(".txt").write_text("<script>alert(1)</script>", "utf-8")
    contents = Contents.of(project)
    report = ImportReport(
        added=[image],
        skipped=[Skipped(name=HOSTILE, reason="<i>")],
        refused=[Refused(name=HOSTILE, message=f"{HOSTILE}", remedy="<u>")],
        notes=["<s>"],
    )
    shown = "".join(
        [
            image_grid(home, Gallery(contents), 0, "", thumbnails_ready=True),
            set_aside_card([HOSTILE], "restore:x"),
            import_card(report),
            caption_hint("<em>", "<b>"),
        ]
    )
    for tag_name in ("script", "img src=x", "b", "i", "u", "s", "em"):
        assert f"<{tag_name}>" not in shown
    assert shown.count("<img ") == 1


def test_hostile_captions_are_escaped(home: Home) -> None:
    project = home.create_project("hostile captions", ProjectInfo(trigger_word="<b>"))
    for name in ("<i>.png", "b.png"):
        image = project.images_dir / name
        shutil.copy(EXAMPLE_IMAGES / "key.png", image)
        image.with_suffix(".txt").write_text('<script>alert(1)</script>, "><u>, day, night', "utf-8")
    contents = Contents.of(project)
    plan = plan_edit([item.path for item in contents.items], remove(["day"]))
    frequencies = contents.captions.tag_table.frequencies
    html = "".join(
        [
            tag_chips(contents.items[0].caption or "", "<b>", {}),
            suggestion_list("<e", [Suggestion("<em>", 1)]),
            finding_list(contents.captions.findings),
            plan_table(plan),
            tag_table(frequencies, "<u>", 0),
            co_occurrence_table("<s>", frequencies),
        ]
    )
    for name in ("script", "u", "b", "i", "em", "s"):
        assert f"<{name}>" not in html
    assert "&lt;script&gt;" in html


def test_tiles_and_curate_show_no_earlier_result_during_a_scan(home: Home) -> None:
    project = add_captioned_images(home.create_project("scanned"), {"guitar.png": "", "key.png": ""})

    def figures(*, scanning: bool) -> list[str]:
        return re.findall(r'"figure">([^<]+)', dataset_tiles(Contents.of(project), 0, scanning=scanning))[:3]

    assert figures(scanning=False) == ["2", "0", "0"]
    assert dataset_tiles(Contents.of(project), 0).count("tile ok") == 2
    assert "card ok" in curation_status(Contents.of(project))
    assert figures(scanning=True) == ["2", "–", "–"]
    assert "tile ok" not in dataset_tiles(Contents.of(project), 0, scanning=True)
    assert "768 px" not in dataset_tiles(Contents.of(project), 0, scanning=True)
    assert "card ok" not in curation_status(Contents.of(project), scanning=True)
    Image.new("RGB", (640, 640)).save(project.images_dir / "new.png")
    assert figures(scanning=False) == ["3", "–", "–"]


def test_tiles_name_the_extension_that_a_project_chose(home: Home) -> None:
    project = add_captioned_images(home.create_project("extension", ProjectInfo(recipe={"caption_extension": ".txt2"})))
    assert "Captioned in .txt2" in dataset_tiles(Contents.of(project), 0)
    project.save_info(ProjectInfo())
    assert "Captioned in" not in dataset_tiles(Contents.of(project), 0)


def test_files_that_are_refused_for_one_reason_share_a_card() -> None:
    files = [
        Refused(name=f"{number}.png", message=f"{number}.png is damaged.", remedy="Save it.") for number in range(60)
    ]
    other = Refused(name="a.gif", message="a.gif is animated.", remedy="Pick a frame.")
    shown = import_card(ImportReport(added=[], skipped=[], refused=[*files, other], notes=[]))
    assert shown.count("Save it.") == 1
    assert "60 files" in shown
    assert "11.png is damaged." in shown
    assert "and 48 more" in shown
    assert "a.gif is animated." in shown


def test_large_dataset_is_shown_in_pages(home: Home) -> None:
    project = home.create_project("large")
    for number in range(PAGE_SIZE + 2):
        (project.images_dir / f"{number:03d}.png").write_bytes(b"")
    contents = Contents.of(project)
    first, last = (image_grid(home, Gallery(contents), page, "", thumbnails_ready=False) for page in (0, 99))
    assert first.count('class="shot"') == PAGE_SIZE
    assert 'data-pick="page:1"' in first
    assert 'data-pick="page:0"' in last
    assert last.count('class="shot"') == 2
    assert "49–50 of 50 images" in last
