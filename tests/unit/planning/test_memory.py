from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file

from lora_studio.demo import base_path
from lora_studio.guide import MEMORY_SAVINGS
from lora_studio.lora.inject import add_adapters
from lora_studio.models.catalogue import BASES
from lora_studio.models.describe import describe_base
from lora_studio.models.locate import SDXL_KEY
from lora_studio.planning.memory import (
    COMMUNICATION_GIB,
    DESKTOP_GIB,
    EMBEDDED,
    SDXL,
    architecture_of,
    estimate_vram_gib,
    estimate_vram_parts,
    estimate_vram_phases,
    fit_vram,
    fits,
    has_effect,
    lora_mib,
    lora_weights,
    recomputed_share,
    saving_advice,
)
from lora_studio.settings.choices import Optimizer
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.project import Home


def recipe(**values: Any) -> Recipe:
    return Recipe.parse(values)


def test_lora_sizes_match_real_files() -> None:
    unet_only = recipe(text_encoder_lr=0)
    assert lora_weights(unet_only) == 85_114_880
    assert lora_mib(unet_only) == pytest.approx(162.3, abs=0.1)
    # kohya's file of rank 32 with both text encoders has 228 MB.
    assert lora_mib(recipe()) * 2**20 / 1e6 == pytest.approx(228, abs=1)
    assert lora_mib(recipe(network_dim=8)) == pytest.approx(lora_mib(recipe()) / 4)
    for wide in ({"mixed_precision": "fp32"}, {"save_precision": "fp32"}):
        assert lora_mib(recipe(**wide)) == 2 * lora_mib(recipe())
    assert lora_mib(recipe(mixed_precision="fp32", save_precision="bf16")) == lora_mib(recipe())
    assert lora_weights(recipe(unet_lr=0)) == lora_weights(recipe()) - 85_114_880


def test_on_a_cpu_a_lora_is_saved_in_fp32() -> None:
    assert lora_mib(recipe(), on_cpu=True) == 2 * lora_mib(recipe())
    assert lora_mib(recipe(mixed_precision="bf16"), on_cpu=True) == lora_mib(recipe())


def test_a_base_of_another_shape_has_its_own_figures(tiny_base: Path, home: Home) -> None:
    """Those of the layers are exact, the others are scaled down from SDXL's."""
    small = describe_base(str(tiny_base), home)
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_base)
    made = recipe(network_type="LoCon", network_dim=4, conv_dim=2)
    adapters = add_adapters(pipe.unet, [pipe.text_encoder, pipe.text_encoder_2], made)
    assert lora_weights(made, small) == sum(weight.numel() for weight in adapters.parameters("unet", "te1", "te2"))
    assert estimate_vram_gib(recipe(), small) < estimate_vram_gib(recipe()) / 2


def test_shapes_read_from_files_are_those_of_the_architectures(home: Home, tmp_path: Path) -> None:
    save_file({SDXL_KEY: torch.zeros(1)}, tmp_path / "sdxl.safetensors")
    assert architecture_of(describe_base(str(tmp_path / "sdxl.safetensors"), home)) is SDXL
    assert architecture_of(describe_base(str(base_path()), home)) is EMBEDDED


def test_text_encoder_weights_are_counted_layer_by_layer() -> None:
    def modules(width: int, hidden: int, layers: int) -> int:
        attention = 4 * (width + width)
        feed_forward = (width + hidden) + (hidden + width)
        return layers * (attention + feed_forward)

    texts = recipe(unet_lr=0, network_dim=1)
    assert lora_weights(texts) == modules(768, 3072, 12) + modules(1280, 5120, 32)


@pytest.mark.parametrize(
    ("optimizer", "mib"), [(Optimizer.ADAMW, 649), (Optimizer.ADAMW8BIT, 170), (Optimizer.PRODIGY, 1299)]
)
def test_optimizer_state_sizes(optimizer: Optimizer, mib: float) -> None:
    parts = estimate_vram_parts(recipe(optimizer=optimizer, text_encoder_lr=0))
    assert parts["Optimizer state"] * 1024 == pytest.approx(mib, abs=4)


def test_adafactor_state_is_factored() -> None:
    assert estimate_vram_parts(recipe())["Optimizer state"] < 0.02


def test_parts_sum_to_the_total_and_depend_on_the_settings() -> None:
    base = recipe(gradient_checkpointing=False, batch_size=1, text_encoder_lr=0)
    parts = estimate_vram_parts(base)
    assert sum(parts.values()) == pytest.approx(estimate_vram_gib(base), abs=0.01)
    assert parts["UNet"] == pytest.approx(4.78, abs=0.01)
    assert parts["Activations"] == pytest.approx(5.94)
    for unfused in ({"network_type": "DoRA"}, {"network_dropout": 0.1}):
        other = Recipe.parse(base.model_dump() | unfused)
        assert estimate_vram_parts(other)["Activations"] == pytest.approx(9.14)
    assert "Text encoders" not in parts
    batch_2 = estimate_vram_parts(base.model_copy(update={"batch_size": 2}))
    assert batch_2["Activations"] == pytest.approx(2 * parts["Activations"])
    assert estimate_vram_parts(base.model_copy(update={"resolution": 512}))["Activations"] == pytest.approx(
        1.485, abs=0.01
    )
    assert estimate_vram_parts(base.model_copy(update={"resolution": 768}))["Activations"] == pytest.approx(
        3.34, abs=0.01
    )
    full = estimate_vram_parts(recipe(mixed_precision="fp32"))
    assert full["UNet"] == pytest.approx(2 * parts["UNet"], abs=0.01)
    assert estimate_vram_parts(recipe())["Text encoders"] == pytest.approx(1.52, abs=0.02)


@pytest.mark.parametrize("settings", [{}, {"network_dropout": 0.1}], ids=["fused layers", "plain layers"])
def test_text_encoder_activations_grow_with_the_captions(settings: dict[str, Any]) -> None:
    def activations(**changes: Any) -> float:
        return estimate_vram_parts(recipe(batch_size=2, **settings, **changes))["Activations"]

    def of_text_encoders(**changes: Any) -> float:
        return activations(**changes) - activations(text_encoder_lr=0, **changes)

    short, long = (of_text_encoders(gradient_checkpointing="off", max_token_length=length) for length in (75, 225))
    assert long == pytest.approx(3 * short, abs=2e-3)
    assert short > 5 * of_text_encoders(gradient_checkpointing="on", max_token_length=75) > 0


def test_the_largest_phase_is_what_a_run_needs() -> None:
    def phases(**changes: Any) -> dict[str, float]:
        return estimate_vram_phases(recipe(batch_size=1, text_encoder_lr=0, gradient_checkpointing="on", **changes))

    plain = phases()
    assert list(plain) == ["Training", "Encoding images", "Drawing a sample"]
    assert max(plain, key=lambda name: plain[name]) == "Training"
    assert "Drawing a sample" not in estimate_vram_parts(recipe(gradient_checkpointing="on"))
    assert set(phases(sample_every_n_epochs=0)) == {"Training", "Encoding images"}
    assert phases(sample_every_n_epochs=0, sample_at_first=True) == plain
    # an image larger than those trained on
    for changes, name in (
        ({"sample_width": 2048, "sample_height": 2048}, "Drawing a sample"),
        ({"resolution": 512}, "Drawing a sample"),
        ({"resolution": 1536, "max_bucket_reso": 2048, "base_precision": "nf4"}, "Encoding images"),
    ):
        found = phases(**changes)
        assert max(found, key=lambda phase: found[phase]) == name
        chosen = recipe(batch_size=1, text_encoder_lr=0, gradient_checkpointing="on", **changes)
        parts = estimate_vram_parts(chosen)
        assert parts[name] == pytest.approx(found[name] - found["Training"], abs=2e-3)
        assert sum(parts.values()) == pytest.approx(estimate_vram_gib(chosen), abs=0.01)
    smaller = {"sample_width": 1024, "sample_prompts": ["a", "b --w 2048 --h 2048"]}
    assert phases(**smaller) == phases(sample_width=2048, sample_height=2048)
    without_guidance = phases(sample_width=2048, sample_height=2048, sample_guidance=1.0)
    drawing = [found["Drawing a sample"] for found in (plain, without_guidance, phases(**smaller))]
    assert drawing == sorted(set(drawing))


def test_several_gpus_need_memory_to_communicate() -> None:
    chosen = recipe(batch_size=1, text_encoder_lr=0)
    alone, together = (estimate_vram_parts(chosen, None, 12, processes=count) for count in (1, 2))
    assert together["Communication"] == COMMUNICATION_GIB
    assert alone["Activations"] - together["Activations"] == pytest.approx(COMMUNICATION_GIB, abs=2e-3)
    assert estimate_vram_gib(chosen, processes=2) == pytest.approx(estimate_vram_gib(chosen) + COMMUNICATION_GIB)


def test_auto_checkpointing_recomputes_just_enough_to_fit() -> None:
    none, auto, every = (
        recipe(gradient_checkpointing=choice, batch_size=1, text_encoder_lr=0) for choice in ("off", "auto", "on")
    )
    minimum, maximum = estimate_vram_gib(every), estimate_vram_gib(none)
    assert estimate_vram_gib(auto) == minimum
    assert estimate_vram_gib(auto, None, 80) == maximum
    between = (minimum + maximum) / 2
    assert estimate_vram_gib(auto, None, between + DESKTOP_GIB) == pytest.approx(between, abs=0.02)
    assert recomputed_share(auto, None, between + DESKTOP_GIB) == pytest.approx(0.5, abs=0.01)
    assert estimate_vram_gib(auto, None, 4) == minimum
    assert fits(auto, None, minimum + DESKTOP_GIB)
    assert not fits(none, None, maximum + DESKTOP_GIB - 0.1)
    assert [recomputed_share(item, None, None) for item in (none, auto, every)] == [0, None, 1]


def test_quantized_base_needs_less_memory() -> None:
    sizes = [estimate_vram_parts(recipe(base_precision=kind))["UNet"] for kind in ("full", "int8", "nf4")]
    assert sizes == pytest.approx([4.78, 2.81, 1.86], abs=0.01)
    small = [estimate_vram_parts(recipe(base_precision=kind), BASES["embedded"])["UNet"] for kind in ("full", "nf4")]
    assert 0.5 * small[0] < small[1] < 0.7 * small[0]


def test_embedded_base_needs_little_memory() -> None:
    assert architecture_of(BASES["embedded"]) is EMBEDDED
    assert architecture_of(BASES["Pony V6 XL"]) is SDXL
    assert architecture_of(None) is SDXL
    small = recipe(resolution=128, bucket_reso_steps=32, network_dim=16, batch_size=8)
    assert estimate_vram_gib(small, BASES["embedded"]) < 2
    assert lora_mib(small, BASES["embedded"]) < 3


@pytest.mark.parametrize("vram", [8, 10, 12, 16, 24, 48, 80])
def test_fit_vram_fits_common_gpus(vram: int) -> None:
    fitted, _ = fit_vram(recipe(gradient_checkpointing=False, batch_size=4), None, vram)
    assert fits(fitted, None, vram)


def test_fit_vram_applies_savings_in_the_guides_order_and_only_as_needed() -> None:
    start = recipe(gradient_checkpointing=False, batch_size=4)
    assert fit_vram(start, None, 80)[1] == []
    order = [saving.code for saving in MEMORY_SAVINGS]
    before = 0
    for vram in (40, 24, 12, 11, 9, 8, 6, 5, 4.3):
        _, applied = fit_vram(start, None, vram)
        codes = [saving.code for saving in applied]
        assert codes == [code for code in order if code in codes]
        assert len(codes) >= before
        before = len(codes)
    assert codes == [
        "checkpointing",
        "batch",
        "text_encoders",
        "base_int8",
        "base_nf4",
        "resolution_768",
        "resolution_512",
    ]


def test_fit_vram_chooses_the_largest_batch_that_fits() -> None:
    fitted, _ = fit_vram(recipe(batch_size=4), None, 11)
    assert fitted.batch_size == 3
    assert not fits(fitted.model_copy(update={"batch_size": 4}), None, 11)


def test_fit_vram_keeps_the_given_settings() -> None:
    fitted, applied = fit_vram(recipe(batch_size=4), None, 8, keep={"batch_size", "resolution"})
    assert (fitted.batch_size, fitted.resolution) == (4, 1024)
    assert {saving.setting for saving in applied} == {"text_encoder_lr", "base_precision"}


def test_text_encoders_that_stop_early_can_be_left_untrained() -> None:
    fitted, applied = fit_vram(recipe(stop_text_encoder_training=0.5), None, 8)
    assert "text_encoder_lr" in {saving.setting for saving in applied}
    assert not fitted.trains_text_encoders


def test_replacing_prodigy_restores_ordinary_learning_rates() -> None:
    fitted, _ = fit_vram(
        recipe(optimizer="Prodigy", unet_lr=1, text_encoder_lr=0, network_dim=128, batch_size=1), None, 12
    )
    assert fitted.optimizer is Optimizer.ADAMW8BIT
    assert (fitted.unet_lr, fitted.text_encoder_lr) == (5e-4, 0)


def test_next_saving_suggests_each_saving_in_turn() -> None:
    current = recipe(gradient_checkpointing=False, batch_size=2, optimizer="AdamW")
    sentences = []
    for saving in MEMORY_SAVINGS:
        assert has_effect(current, saving)
        sentence = saving_advice(current)
        assert saving.advice in sentence
        sentences.append(sentence)
        current = Recipe.parse(current.model_dump() | {saving.setting: saving.value})
    assert len(set(sentences)) == len(MEMORY_SAVINGS)
    assert "network dim from 32" in saving_advice(current)
    assert "more memory" in saving_advice(current.model_copy(update={"network_dim": 8}))
