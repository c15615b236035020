"""All four tabs in a real browser with a tiny SDXL: from a folder of images to the strength grid.

Set LORA_STUDIO_SCREENSHOTS to a folder to save screenshots.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from lora_studio.events import StepEvent
from lora_studio.lora.header import read_lora_header
from lora_studio.models.png_info import read_parameters
from lora_studio.workspace.job_folder import JobState
from lora_studio.workspace.project import Project
from tests.support.application import Running
from tests.support.tiny_taggers import save_tiny_wd

WORKER_MS = 240_000  # a worker process imports torch first, and the machine may be busy
STEPS = 200
SIDE = 96  # px
Screenshot = Callable[[str], None]


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Create six different images, a smaller copy of the first one, and a text file with the name of an image."""
    folder = tmp_path / "my pictures"
    folder.mkdir()
    for index in range(6):
        image = Image.new("RGB", (SIDE, SIDE), (40 * index, 255 - 40 * index, 60 + 20 * index))
        draw = ImageDraw.Draw(image)
        draw.ellipse((6 * index, 8, 40 + 6 * index, 60), fill=(255 - 30 * index, 220, 30 * index))
        draw.rectangle((10, 90 - 12 * index, 70, 94 - 9 * index), fill=(20, 20 * index, 200))
        draw.line((0, 15 * index, SIDE, SIDE - 11 * index), fill=(0, 0, 0), width=6)
        image.save(folder / f"picture {index}.png")
    with Image.open(folder / "picture 0.png") as first:
        first.resize((80, 80), Image.Resampling.LANCZOS).save(folder / "small copy.png")
    (folder / "notes.png").write_text("not an image", "utf-8")
    return folder


@pytest.fixture
def screenshot(page: Any) -> Screenshot:
    """Save a screenshot of the page under a name, if LORA_STUDIO_SCREENSHOTS is set."""
    folder = os.environ.get("LORA_STUDIO_SCREENSHOTS")

    def save(name: str) -> None:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=str(Path(folder) / f"{name}.png"))

    return save


def tab(page: Any, name: str) -> None:
    """Open a tab."""
    page.get_by_role("tab", name=name).click()


def fill(page: Any, place: str, text: str) -> None:
    """Fill a text box and leave it."""
    box = page.locator(f"#{place} textarea, #{place} input").first
    box.fill(text)
    box.press("Tab")


def choose(page: Any, place: str, text: str) -> None:
    """Enter a custom value in a dropdown."""
    box = page.locator(f"#{place} input")
    box.click()
    box.fill(text)
    box.press("Enter")


@pytest.mark.slow
def test_from_images_to_the_grid(
    page: Any, running: Running, image_folder: Path, tiny_base: Path, tmp_path: Path, screenshot: Screenshot
) -> None:
    new_project(page, tiny_base)
    project = running.home.project("Ink")
    import_and_curate(page, project, image_folder, screenshot)
    tag(page, project, save_tiny_wd(tmp_path / "tagger"), screenshot)
    start_training(page, screenshot)
    stop_and_resume(page, project, screenshot)
    draw_the_grid(page, project, screenshot)


def new_project(page: Any, base: Path) -> None:
    """Create a project and answer the questions of Plan."""
    page.get_by_role("button", name="Projects").click()
    page.get_by_label("Name").fill("Ink")
    page.get_by_role("button", name="New project").click()
    page.locator("#plan-tiles").get_by_text("Steps").wait_for()
    page.locator("#plan-kind").get_by_text("Style").click()
    choose(page, "plan-base", str(base))
    page.get_by_text("is an SDXL that predicts epsilon").first.wait_for()
    fill(page, "plan-trigger", "inkstamp_hc")


def import_and_curate(page: Any, project: Project, image_folder: Path, screenshot: Screenshot) -> None:
    """Import a folder and set the duplicate aside."""
    tab(page, "Dataset")
    fill(page, "dataset-folder", str(image_folder))
    page.locator("#dataset-import-folder").click()
    page.locator("#dataset-notice, #dataset-report, #dataset-message").get_by_text("notes.png").first.wait_for()
    assert len(list(project.images_dir.glob("*.png"))) == 7
    page.locator("#dataset-section").get_by_text("Curate").click()
    page.locator("#dataset-groups img").nth(1).wait_for()
    screenshot("dataset-curate")
    page.locator("#curate-apply").click()
    page.locator("#curate-aside").get_by_text("small copy").first.wait_for()
    assert [path.name for path in project.rejected_dir.rglob("*.png")] == ["small copy.png"]


def tag(page: Any, project: Project, tagger: Path, screenshot: Screenshot) -> None:
    """Tag the images."""
    page.locator("#dataset-section").get_by_text("Tag", exact=True).click()
    choose(page, "tag-tagger", str(tagger))
    page.locator("#tag-start").click()
    page.locator("#tag-undo").wait_for(timeout=WORKER_MS)
    captions = [path.read_text("utf-8") for path in project.images_dir.glob("*.txt")]
    assert len(captions) == 6
    assert all(caption.startswith("inkstamp_hc") for caption in captions)
    page.locator("#dataset-section").get_by_text("Review").click()
    page.locator("#dataset-grid img").first.wait_for()
    screenshot("dataset-review")


def start_training(page: Any, screenshot: Screenshot) -> None:
    """Open the plan's recipe in Train, shorten it and start; an invalid learning rate is reported first."""
    tab(page, "Plan")
    page.get_by_text("Counted in the dataset").wait_for()
    screenshot("plan")
    page.locator("#plan-train").click()
    page.locator("#train-start").wait_for()
    for fold in ("Schedule", "Data", "Samples"):
        page.get_by_role("button", name=re.compile(rf"^{fold}\b(?! prompts)")).click()
    fill(page, "recipe-text_encoder_lr", "0")
    fill(page, "recipe-epochs", "99")
    fill(page, "recipe-max_train_steps", str(STEPS))
    fill(page, "recipe-resolution", "64")
    fill(page, "recipe-min_bucket_reso", "64")
    fill(page, "recipe-sample_prompts", "{trigger}, cat\nclock")
    fill(page, "recipe-sample_every_n_epochs", "0")
    fill(page, "recipe-save_every_n_epochs", "99")
    fill(page, "recipe-unet_lr", "abc")
    page.locator("#train-start").click()
    page.locator("#train-notice").get_by_text("(unet_lr)").wait_for()
    screenshot("train-wrong")
    fill(page, "recipe-unet_lr", "5e-4")
    page.locator("#train-start").click()


def stop_and_resume(page: Any, project: Project, screenshot: Screenshot) -> None:
    """Watch the live loss, stop and resume the run, and check that it has every step once."""
    loss = page.locator("#train-curve studio-chart").first
    loss.locator("path.smooth").first.wait_for(state="attached", timeout=WORKER_MS)
    page.locator("#job-pill").get_by_text(re.compile("Training")).wait_for()
    screenshot("train-running")
    page.locator("#train-stop").click()
    page.locator("#train-resume").wait_for(timeout=WORKER_MS)
    [run] = project.runs()
    assert run.status().state is JobState.STOPPED
    assert 0 < run.status().done < STEPS
    page.locator("#train-test").wait_for()
    page.locator("#train-download").wait_for()
    [stopped_at] = (run.path / "checkpoints").glob("Ink-step*.safetensors")
    assert int(stopped_at.stem.removeprefix("Ink-step")) == run.status().done
    page.locator("#train-resume").click()
    page.locator("#train-tiles").get_by_text(f"{STEPS} / {STEPS}").wait_for(timeout=WORKER_MS)
    page.locator("#train-test").wait_for(timeout=WORKER_MS)
    screenshot("train-done")
    steps = [event.step for event in run.events()[0] if isinstance(event, StepEvent)]
    assert steps == list(range(1, STEPS + 1)), "the resumed run repeated or skipped a step"
    assert read_lora_header(run.path / "Ink.safetensors").trigger_word == "inkstamp_hc"


def draw_the_grid(page: Any, project: Project, screenshot: Screenshot) -> None:
    """Draw the grid of the finished run, enlarge an image and download the grid."""
    page.locator("#train-test").click()
    page.locator("#test-loras").get_by_text("· final").wait_for()
    fill(page, "test-strengths", "0, 1")
    page.locator("#test-count").get_by_text("4 images").wait_for()
    page.get_by_role("button", name="Seeds, steps, size and more").click()
    fill(page, "test-steps", "2")
    page.locator("#test-start").click()
    page.locator("#test-download").wait_for(timeout=WORKER_MS)
    shown = page.locator("#test-grid img")
    assert shown.count() == 4
    assert all("/thumbnails/" in (image.get_attribute("src") or "") for image in shown.all())
    page.locator("#test-grid button:has(img)").nth(1).click()
    page.locator("#test-large img").first.wait_for()
    page.locator("#test-large dd").get_by_text("inkstamp_hc, cat", exact=True).wait_for()
    screenshot("test")
    page.keyboard.press("Escape")
    page.locator("#test-large .lightbox").wait_for(state="detached")
    [sweep] = project.sweeps()
    assert 'Strengths: "0, 1"' in (read_parameters(sweep.path / "grid.png") or "")
    with page.expect_download() as download:
        page.locator("#test-download").click()
    assert Path(download.value.path()).read_bytes() == (sweep.path / "grid.png").read_bytes()
