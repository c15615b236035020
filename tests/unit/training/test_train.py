"""Runs with regularisation, validation split, masks, and image and caption augmentation."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.manifest import Manifest, scan_stamps
from lora_studio.dataset.scan import scan
from lora_studio.errors import ConfigError, InputError
from lora_studio.training.objective import draw_noise, draw_timestep
from lora_studio.training.trainer import Trainer
from lora_studio.workspace.project import Home, Project
from tests.support.augmented_runs import EVERYTHING, augmented_job, read_records, snr_weight, write_dataset
from tests.support.events import Events, of
from tests.support.image_reads import counted_image_reads
from tests.support.training_runs import losses_of, make_images, make_job, same, start, train_into, weights_of


@pytest.fixture(scope="module")
def whole(training_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Events]:
    """The folder and events of a run with everything, trained without a stop."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train_into(augmented_job(training_inputs, **EVERYTHING), folder, Home(training_inputs / "home"))[1]


def test_validates_before_the_first_step_and_after_each_epoch(
    whole: tuple[Path, Events],
) -> None:
    events = whole[1]
    last = len(of(events, "step"))
    positions = [(values["epoch"], values["step"]) for values in of(events, "validation")]
    assert {(0, 0), (1, last // 2), (2, last)} <= set(positions)
    assert len({values["loss"] for values in of(events, "validation")}) == len(positions)


def test_the_loras_with_the_lowest_validation_loss_are_kept(whole: tuple[Path, Events]) -> None:
    folder, events = whole
    losses = {values["step"]: values["loss"] for values in of(events, "validation")}
    lowest, best = losses[0], []
    for step, loss in losses.items():
        if loss < lowest:
            lowest, best = loss, [*best, step]
    saved = [values for values in of(events, "checkpoint") if values["path"].endswith("ink-best.safetensors")]
    assert [values["step"] for values in saved] == best
    assert (folder / "checkpoints" / "ink-best.safetensors").is_file() == bool(best)


def test_steps_are_relative_to_the_base_s_loss(whole: tuple[Path, Events]) -> None:
    (base,) = of(whole[1], "base_loss")
    assert base["loss"] > 0
    relative = [values["relative_loss"] for values in of(whole[1], "step")]
    assert all(0.2 < value < 5 for value in relative)


@pytest.mark.slow
def test_a_run_with_everything_resumes_bit_exact_once_its_images_are_restored(
    training_inputs: Path, whole: tuple[Path, Events], tmp_path: Path
) -> None:
    """Images that are lost or damaged during the run do no harm; resuming needs them back."""
    home = Home(training_inputs / "home")
    images = write_dataset(tmp_path / "images")
    job = augmented_job(training_inputs, images, **EVERYTHING)
    total = len(of(whole[1], "step"))
    stop = total // 2 + 1

    def damage_images(steps: int) -> bool:
        if steps == 1:
            (images / "1.png").unlink(missing_ok=True)
            (images / "3.png").write_text("no picture", "utf-8")
        return steps >= stop

    run = tmp_path / "run"
    train_into(job, run, home, stop_when=damage_images)
    with pytest.raises(ConfigError, match=r"3\.png"):
        train_into(job, run, home, resume=True)
    (images / "3.png").unlink()
    with pytest.raises(InputError, match=r"1\.png, 3\.png") as caught:
        train_into(job, run, home, resume=True)
    assert caught.value.code == "dataset_changed"
    write_dataset(images)
    _, rest = train_into(job, run, home, resume=True)
    assert not [warning for warning in of(rest, "warning") if warning["code"] == "dataset_changed"]
    assert [values["step"] for values in of(rest, "step")] == list(range(stop + 1, total + 1))
    assert [values["loss"] for values in of(rest, "step")] == [values["loss"] for values in of(whole[1], "step")][stop:]
    later = [values for values in of(whole[1], "validation") if values["step"] > stop]
    assert of(rest, "validation") == later
    assert of(rest, "epoch") == of(whole[1], "epoch")[1:]
    assert image_losses(run) == image_losses(whole[0])
    assert same(weights_of(whole[0]), weights_of(run))


def image_losses(run: Path) -> list[dict[str, Any]]:
    """Return the losses by image that a run has written, with the names of images instead of their paths."""
    written = json.loads((run / "image_losses.json").read_text("utf-8"))
    return [entry | {"image": Path(entry["image"]).name} for entry in written["images"]]


def test_an_epoch_reports_the_norm_of_the_change_and_the_loss_of_each_training_image(
    whole: tuple[Path, Events],
) -> None:
    """Neither images of the validation split nor regularisation images are among them."""
    first, last = (values["unet_norm"] for values in of(whole[1], "epoch"))
    assert 0 < first < last
    assert all(values["gradient_norm"] > 0 for values in of(whole[1], "step"))
    trained = [record for record in read_records(whole[0] / "dataset.jsonl") if record["set"] == "train"]
    written = json.loads((whole[0] / "image_losses.json").read_text("utf-8"))
    assert {entry["image"] for entry in written["images"]} == {record["path"] for record in trained}


@pytest.mark.slow
def test_validation_images_do_not_change_the_training(training_inputs: Path, tmp_path: Path) -> None:
    """The weights equal those of a run on a folder without these images."""
    home = Home(training_inputs / "home")
    train_into(augmented_job(training_inputs, validation_split=0.25, max_train_steps=2), tmp_path / "split", home)
    held = [record for record in read_records(tmp_path / "split" / "dataset.jsonl") if record["set"] == "held out"]
    assert len(held) == 1
    rest = write_dataset(tmp_path / "images")
    (rest / Path(held[0]["path"]).name).unlink()
    train_into(augmented_job(training_inputs, rest, max_train_steps=2), tmp_path / "without", home)
    assert same(weights_of(tmp_path / "split"), weights_of(tmp_path / "without"))


def test_losses_are_weighted_by_mask_and_set(zero_run: Trainer) -> None:
    """For a prediction of zeros it is the squared noise within the mask, times the weights of set and timestep."""
    masked = next(item for item in zero_run.dataset.epoch_items if item.mask is not None)
    prior = next(item for item in zero_run.dataset.regularization if item.placement.bucket == (64, 64))
    losses = losses_of(zero_run, [masked, prior], step=7, first=3)
    for loss, item, sample in zip(losses, (masked, prior), (3, 4), strict=True):
        noise = draw_noise((4, 8, 8), 42, 7, sample, zero_run.job.recipe.noise_offset)
        counted = noise[:, :4] if item is masked else noise
        expected = float((counted**2).mean()) * (0.5 if item is prior else 1.0)
        assert float(loss) == pytest.approx(
            expected * snr_weight(zero_run, draw_timestep(42, 7, sample, 1000)), rel=1e-4
        )
    unet: Any = zero_run.base.unet
    assert unet.seen[0]["encoder_hidden_states"].shape == (2, 154, 40)


def test_a_local_base_with_zero_terminal_snr_gets_hints_about_the_default_noise(
    training_inputs: Path, tmp_path: Path, home: Home
) -> None:
    base = Path(shutil.copytree(training_inputs / "base", tmp_path / "base"))
    config = base / "scheduler" / "scheduler_config.json"
    zero_snr = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | zero_snr), "utf-8")
    job = make_job(base, make_images(tmp_path / "images", [(64, 64)]), epochs=1)
    _, events = train_into(job, tmp_path / "run", home)
    assert {"noise_offset_zero_snr", "min_snr_zero_snr"} <= {values["code"] for values in of(events, "hint")}


def age(folder: Path) -> list[Path]:
    """Return the image and mask files below a folder, as if they had not been changed for long."""
    files = [path for path in folder.rglob("*.*") if path.suffix in (".png", ".jpg")]
    for path in files:
        os.utime(path, (1e9, 1e9))  # of a file that was just changed, the stamp shows no further change
    return files


def scan_into(project: Project) -> None:
    """Scan a project's dataset, as the Dataset tab does."""
    stamps = scan_stamps(find_images(project.dataset_dir))
    Manifest.of_scan(project.dataset_dir, scan(project.dataset_dir), stamps).save_scan(project.path)


@pytest.mark.slow
@pytest.mark.parametrize(("masks", "scanned"), [("files", False), ("alpha", True), ("alpha", False)])
def test_a_start_decodes_and_hashes_each_uncached_file_once(
    tiny_base: Path, tmp_path: Path, masks: str, scanned: bool
) -> None:
    """Also with latents of two augmentations and a mask per image. With full caches, nothing is decoded."""
    home = Home(tmp_path / "home")
    project = home.create_project("ink")
    make_images(project.images_dir, [(64, 64)] * 3)
    make_images(tmp_path / "prior", [(72, 64)])
    Image.effect_noise((64, 64), 50).convert("RGB").save(project.images_dir / "photo.jpg")
    masked = [project.images_dir / "1.png", project.images_dir / "2.png"]
    for image in masked:
        if masks == "files":
            Image.open(image).convert("L").save(image.with_stem(f"{image.stem}-masklabel"))
        else:
            Image.open(image).convert("RGBA").rotate(45).save(image)
    files = [*age(project.dataset_dir), *age(tmp_path / "prior")]
    if scanned:
        scan_into(project)
    job = make_job(tiny_base, project.dataset_dir, masked_loss=masks, flip_aug=True, validation_split=0.2)
    job.regularization = tmp_path / "prior"
    alpha_channels = masked if masks == "alpha" and not scanned else []  # decoded to see whether it is opaque
    with counted_image_reads() as first:
        start(job, project.path / "runs" / "001-ink", home)
    assert first.hashed == Counter(files)
    assert first.decoded == Counter(files + alpha_channels)
    with counted_image_reads() as second:
        start(job, project.path / "runs" / "002-ink", home)
    assert second.decoded == {}
    assert second.hashed == {}  # in the same process: their hashes are cached until the files change
