from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lora_studio.dataset.buckets import place_for
from lora_studio.dataset.validation_split import validation_count
from lora_studio.errors import InputError
from lora_studio.models.locate import SDXL_KEY
from lora_studio.planning.length import choose_length, target_steps
from lora_studio.planning.plan import plan
from lora_studio.planning.planned_run import Plan
from lora_studio.planning.speeds import remember_speed
from lora_studio.planning.steps import count_steps
from lora_studio.settings.choices import LoraKind
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.plan_numbers import PlanNumbers
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.subsets import Subset
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.events import start_event, step_event

KEYS = {
    "tier", "network_dim", "network_alpha", "unet_lr", "text_encoder_lr", "optimizer", "batch_size", "epochs",
    "repeats", "steps_per_epoch", "total_steps", "vram_gib", "seconds", "lora_mib", "warnings",
}  # fmt: skip


def codes(result: Plan) -> list[str]:
    return [warning.code for warning in result.warnings]


def reason(result: Plan, setting: str) -> Any:
    return next(item for item in result.reasons if item.setting == setting)


def save(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "orange").save(path)


def test_several_gpus_leave_less_memory_for_a_run() -> None:
    alone, together = (plan(30, vram_gib=8, num_processes=count) for count in (1, 2))
    assert "Communication" not in alone.vram_parts
    assert together.vram_parts["Communication"] > 0
    assert together.vram_gib <= 8
    assert together.recipe.base_precision is not alone.recipe.base_precision
    assert together.steps.total_steps == alone.steps.total_steps
    assert together.recipe.batch_size * 2 == alone.recipe.batch_size * alone.recipe.gradient_accumulation_steps


def test_several_gpus_share_a_step_and_take_as_many_of_them() -> None:
    alone, two, four = (plan(301, vram_gib=80, num_processes=count) for count in (1, 2, 4))
    assert [made.recipe.batch_size for made in (alone, two, four)] == [4, 2, 1]
    assert alone.steps == two.steps == four.steps
    assert alone.seconds.high > 1.5 * two.seconds.high > 1.5 * four.seconds.high
    given = {"batch_size": 2, "repeats": 4, "epochs": 5, "gradient_accumulation_steps": 1}
    twice = plan(24, overrides=given, num_processes=2).steps
    assert twice == plan(24, overrides=given | {"batch_size": 4}).steps
    assert "batch_size_tier" in codes(plan(24, overrides=given, num_processes=2))


def test_the_number_of_images_costs_no_memory() -> None:
    most = next(bound.le for bound in PlanNumbers.model_fields["images"].metadata if hasattr(bound, "le"))
    tracemalloc.start()
    try:
        result = plan(most, overrides={"validation_split": 0.1, "repeats": 2}, hours=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.images == most == 1_000_000
    assert result.steps.samples_per_epoch == 2 * (most - validation_count(most, 0.1))
    assert peak < 1_000_000, "bytes"


def test_summary_is_json_with_the_documented_keys() -> None:
    summary = plan(24, vram_gib=12, trigger_word="saria_zelda").summary()
    assert summary.keys() >= KEYS
    assert json.loads(json.dumps(summary)) == summary
    assert summary["seconds_range"][0] < summary["seconds"] < summary["seconds_range"][1]
    assert Recipe.parse(summary["recipe"]).epochs == summary["epochs"]
    for warning in plan(5).summary()["warnings"]:
        assert warning.keys() == {"code", "message", "why"}


def test_fits_the_gpu_memory_and_gives_the_reason() -> None:
    small = plan(24, vram_gib=8)
    assert small.vram_gib < 8
    assert small.recipe.batch_size == 1
    assert small.recipe.gradient_checkpointing == "auto"
    assert small.recipe.text_encoder_lr == 0
    assert "8 GiB" in reason(small, "batch_size").why
    assert "memory" not in codes(small)
    large = plan(24, vram_gib=48)
    assert large.recipe.gradient_checkpointing == "auto"
    assert large.vram_parts["Activations"] > 4 * small.vram_parts["Activations"]
    assert sum(large.vram_parts.values()) == pytest.approx(large.vram_gib, abs=0.02)
    assert plan(24, vram_gib=3).vram_gib > 3
    assert "memory" in codes(plan(24, vram_gib=3))
    assert "memory" not in codes(plan(24))


def test_hours_limit_the_repeats_within_the_tiers_epochs() -> None:
    free, short = plan(24, vram_gib=12), plan(24, vram_gib=12, hours=2)
    assert free.seconds.middle > 7200 >= short.seconds.middle
    assert 1 <= short.repeats < free.repeats
    assert short.tier.epochs[0] <= short.recipe.epochs <= free.recipe.epochs
    assert "2.0 hours" in reason(short, "repeats").why
    assert not [code for code in codes(short) if code in ("epochs_tier", "hours")]
    assert plan(24, vram_gib=12, hours=100).recipe == free.recipe


def test_a_run_too_short_to_learn_anything_is_not_planned() -> None:
    short = plan(24, vram_gib=12, hours=0.001)
    assert short.tier.epochs[0] == short.recipe.epochs
    assert short.steps.total_steps > 100
    assert "hours" in codes(short)


def test_hours_limit_the_steps_of_a_very_large_set() -> None:
    result = plan(10_000, vram_gib=24, hours=3)
    assert result.steps.total_steps == result.recipe.max_train_steps
    assert result.seconds.middle == pytest.approx(3 * 3600, rel=0.01)


def test_hours_limit_the_steps_if_epochs_are_given() -> None:
    given = {"epochs": 12, "repeats": 8}
    short = plan(24, vram_gib=12, hours=1.5, overrides=given)
    assert (short.recipe.epochs, short.recipe.repeats) == (12, 8)
    assert short.steps.total_steps == short.recipe.max_train_steps
    assert short.seconds.middle == pytest.approx(5400, rel=0.02)
    assert "1.5 hours" in reason(short, "max_train_steps").why
    given |= {"max_train_steps": 800}
    assert plan(24, vram_gib=12, hours=0.5, overrides=given).steps.total_steps == 800


def test_earlier_runs_on_this_device_narrow_the_time(tmp_path: Path, home: Home) -> None:
    def remember(number: int, seconds: float, device: str = "NVIDIA X", **changes: Any) -> None:
        recipe = estimate.recipe.model_dump() | changes
        job = TrainJob.parse({"name": "a", "dataset": "d", "base": "SDXL 1.0", "recipe": recipe})
        folder = JobFolder.create(tmp_path / f"{number:03d}", job)
        folder.emit(start_event(device=device))
        for step in range(20):
            folder.emit(step_event(step + 1, seconds=60.0 if step == 0 else seconds))
        remember_speed(home, folder)

    def planned(base: str = "sdxl", device: str = "NVIDIA X") -> Plan:
        return plan(24, vram_gib=24, base=base, device=device, home=home)

    estimate = planned()
    assert "24 GiB" in estimate.seconds.source
    steps = estimate.steps.total_steps
    remember(1, 9.0, resolution=512)
    scaled = planned()
    assert scaled.seconds.low > steps * 4 * 9 / 1.5
    remember(2, 1.0, epochs=3)
    remember(3, 5.0, device="NVIDIA Y")
    measured = planned()
    assert steps * 0.9 < measured.seconds.low < measured.seconds.high < steps * 1.1 + 1000
    assert "measured" in measured.seconds.source
    assert planned(base="pony").seconds.source == planned(device="NVIDIA Z").seconds.source == estimate.seconds.source
    assert plan(24, vram_gib=24, base="sdxl", home=home).seconds.source == estimate.seconds.source


def test_steps_of_a_folder_are_counted_by_bucket(tmp_path: Path) -> None:
    sizes = [(1024, 1024)] * 5 + [(832, 1216)] * 3 + [(1216, 832)] * 2
    for index, size in enumerate(sizes):
        save(tmp_path / "data" / "10_saria" / f"{index}.png", size)
    result = plan(tmp_path / "data", overrides={"batch_size": 4, "gradient_accumulation_steps": 1})
    buckets: dict[Any, int] = {}
    for width, height in sizes:
        bucket = place_for(result.recipe, width, height).bucket
        buckets[bucket] = buckets.get(bucket, 0) + result.repeats
    assert len(buckets) == 3
    assert result.steps == count_steps(buckets, batch_size=4, epochs=result.recipe.epochs)
    assert result.images == 10
    assert not result.assumed
    assert result.repeats == choose_length(10, 4, target_steps(LoraKind.CHARACTER, 4), result.tier).repeats
    assert "captions_missing" in codes(result)


def test_keeps_different_repeats_of_set_folders(tmp_path: Path) -> None:
    for name, number in (("2_saria", 4), ("5_bird", 2)):
        for index in range(number):
            save(tmp_path / name / f"{index}.png", (512, 512))
    result = plan(tmp_path)
    assert result.recipe.repeats is None
    assert result.steps.samples_per_epoch == 4 * 2 + 2 * 5
    assert plan(tmp_path, overrides={"repeats": 3}).steps.samples_per_epoch == 18


def test_warns_about_the_images_of_a_folder(tmp_path: Path) -> None:
    save(tmp_path / "large.png", (1500, 1500))
    save(tmp_path / "small.png", (300, 400))
    (tmp_path / "broken.png").write_text("no image", "utf-8")
    found = plan(tmp_path, trigger_word="saria_zelda")
    assert {"few_images", "small_images", "mixed_resolution", "unreadable", "captions_missing"} <= set(codes(found))
    assert found.images == 2


def test_captioned_folder_gives_no_warning(image_folder: Callable[..., Path]) -> None:
    result = plan(image_folder(12, (1024, 1024)), trigger_word="inkstamp_hc")
    assert codes(result) == []


def test_image_sizes_are_read_after_exif_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1216, 832)).save(tmp_path / "photo.jpg", exif=exif)
    save(tmp_path / "upright.png", (832, 1216))
    assert plan(tmp_path, overrides={"batch_size": 2, "repeats": 1}).steps.batches_per_epoch == 1


@pytest.mark.parametrize(
    ("arguments", "code", "value"),
    [
        ({"images": 0}, "no_images", "0"),
        ({"images": 24, "kind": "portrait"}, "kind", "'portrait'"),
        ({"images": 2.5}, "images", "2.5"),
        ({"images": True}, "images", "True"),
        ({"images": 24, "base": " "}, "base_missing", "base"),
        ({"images": 1_000_000_000}, "images", "1,000,000,000"),
        ({"images": 24, "vram_gib": 0}, "vram_gib", "0"),
        ({"images": 24, "vram_gib": 5000}, "vram_gib", "5,000"),
        ({"images": 24, "hours": 1e9}, "hours", "1,000,000,000"),
        ({"images": 24, "hours": -1.0}, "hours", "-1"),
        ({"images": 24, "overrides": {"unet_learning_rate": 1}}, "config", "unet_learning_rate"),
        ({"images": 24, "overrides": {"unet_lr": "abc"}}, "config", "unet_lr"),
        ({"images": 24, "base": "noobai", "overrides": {"prediction_type": "v_prediction"}}, "config", "NoobAI XL"),
    ],
)
def test_wrong_input_is_an_error_that_names_the_value(arguments: dict[str, Any], code: str, value: str) -> None:
    with pytest.raises(InputError, match=value) as caught:
        plan(arguments.pop("images"), **arguments)
    assert caught.value.code == code


def test_missing_and_empty_folders_are_errors(tmp_path: Path) -> None:
    for folder, code in ((tmp_path / "nowhere", "no_folder"), (tmp_path, "no_images")):
        with pytest.raises(InputError) as caught:
            plan(folder)
        assert caught.value.code == code


def test_on_a_cpu_memory_and_file_are_planned_in_full_precision() -> None:
    on_cpu, on_gpu = plan(24, base="embedded", device="CPU"), plan(24, base="embedded", vram_gib=8)
    assert (on_cpu.on_cpu, on_gpu.on_cpu) == (True, False)
    assert on_cpu.lora_mib == pytest.approx(2 * on_gpu.lora_mib, abs=0.11)
    assert plan(24, device="CPU").vram_parts["UNet"] == pytest.approx(2 * plan(24).vram_parts["UNet"], abs=0.01)
    assert not plan(24, device="CPU", vram_gib=8).on_cpu


def test_regularisation_images_double_the_steps_but_not_the_views_per_image(tmp_path: Path) -> None:
    for number in range(10):
        save(tmp_path / "data" / f"{number}.png", (1024, 1024))
    save(tmp_path / "prior" / "a.png", (1024, 1024))
    given = {"repeats": 4, "epochs": 10, "batch_size": 1}
    alone = plan(tmp_path / "data", overrides=given)
    both = plan(tmp_path / "data", overrides=given, regularization=tmp_path / "prior")
    assert (alone.steps.steps_per_epoch, both.steps.steps_per_epoch) == (40, 80)
    assert both.repeats == 4
    often = {"repeats": 20, "epochs": 10}
    assert "shown_often" not in codes(plan(tmp_path / "data", overrides=often, regularization=tmp_path / "prior"))
    with pytest.raises(InputError) as caught:
        plan(tmp_path / "data", regularization=tmp_path / "nowhere")
    assert caught.value.code == "no_folder"


def test_a_full_matrix_lokr_is_planned_without_an_alpha_that_has_no_effect() -> None:
    lokr = {"network_type": "LoKr", "lokr_factor": 6}
    result = plan(20, overrides=lokr | {"network_dim": 100_000})
    assert (result.recipe.network_dim, result.recipe.network_alpha) == (100_000, 1)
    assert not {"network_dim_range", "alpha_above_dim"} & set(codes(result))
    assert result.lora_mib > 2 * plan(20, overrides=lokr).lora_mib


def test_a_file_with_zero_terminal_snr_is_planned_like_one_of_the_catalogue(tmp_path: Path) -> None:
    file = tmp_path / "noob.safetensors"
    save_file({SDXL_KEY: torch.zeros(1), "v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}, file)
    local, listed = plan(24, base=str(file)), plan(24, base="NoobAI XL v-pred")
    assert local.prediction_type == listed.prediction_type == "v_prediction"
    assert local.recipe.noise_offset == listed.recipe.noise_offset == 0
    assert local.recipe.min_snr_gamma == listed.recipe.min_snr_gamma
    assert reason(local, "noise_offset").why == reason(listed, "noise_offset").why
    assert "base_unchecked" not in codes(local)


def test_a_repository_that_cannot_be_looked_at_is_planned_with_a_caution() -> None:
    assert "base_unchecked" in codes(plan(24, base="someone/model"))


def test_captions_without_the_trigger_word_are_found_before_the_start(tmp_path: Path) -> None:
    for number, caption in enumerate(["zz_ink, a cat", "a dog", "a house"]):
        save(tmp_path / "data" / f"{number}.png", (64, 64))
        (tmp_path / "data" / f"{number}.txt").write_text(caption, "utf-8")
    found = plan(tmp_path / "data", trigger_word="ZZ_ink").warnings
    [caution] = [warning for warning in found if warning.code == "trigger_not_in_captions"]
    assert "2 of 3" in caution.message
    prefixed = plan(tmp_path / "data", trigger_word="zz_ink", overrides={"caption_prefix": "zz_ink"})
    for other in (plan(tmp_path / "data", trigger_word=""), prefixed):
        assert "trigger_not_in_captions" not in codes(other)


def test_subsets_are_counted_with_their_repeats(image_folder: Callable[..., Path]) -> None:
    folder = image_folder(4)
    subsets = [Subset(image_dir=folder, num_repeats=3), Subset(image_dir=folder, num_repeats=5)]
    result = plan(folder, base="SDXL 1.0", overrides={"repeats": 50, "batch_size": 1}, subsets=subsets)
    assert (result.images, result.repeats, result.steps.samples_per_epoch) == (8, 4, 4 * 3 + 4 * 5)
    prior = Subset(image_dir=folder, is_reg=True)
    balanced = plan(folder, base="SDXL 1.0", overrides={"batch_size": 1}, subsets=[*subsets, prior])
    assert balanced.steps.samples_per_epoch == 2 * (4 * 3 + 4 * 5)
