from __future__ import annotations

from typing import Any

import pytest

from lora_studio import guide
from lora_studio.errors import ConfigError
from lora_studio.models.catalogue import BASES
from lora_studio.planning.length import batch_of
from lora_studio.planning.plan import plan
from lora_studio.planning.planned_run import Plan
from lora_studio.planning.presets import load_preset
from lora_studio.settings.choices import LoraKind, Optimizer
from lora_studio.settings.recipe import Recipe


def codes(result: Plan) -> list[str]:
    return [warning.code for warning in result.warnings]


def reason(result: Plan, setting: str) -> Any:
    return next(item for item in result.reasons if item.setting == setting)


def test_character_with_24_images_gets_the_guides_recipe() -> None:
    result = plan(24)
    assert result.tier.name == "small"
    recipe = result.recipe
    assert (recipe.unet_lr, recipe.text_encoder_lr) == (5e-4, 1e-4)
    assert (recipe.network_dim, recipe.network_alpha) == (32, 16)
    assert recipe.optimizer is Optimizer.ADAFACTOR
    assert batch_of(recipe) == 2
    assert 10 <= recipe.epochs <= 15
    assert result.steps.total_steps == 24 * result.repeats // 2 * recipe.epochs
    assert result.steps.total_steps == pytest.approx(guide.KINDS["character"].steps, rel=0.1)


@pytest.mark.parametrize(
    ("images", "tier"), [(1, "small"), (50, "small"), (51, "medium"), (300, "medium"), (301, "large")]
)
def test_tiers_set_batch_and_epochs(images: int, tier: str) -> None:
    result = plan(images)
    assert result.tier.name == tier
    low, high = result.tier.epochs
    assert low <= result.recipe.epochs <= high
    assert result.tier.batch_size[0] <= batch_of(result.recipe) <= result.tier.batch_size[1]
    assert not [code for code in codes(result) if code.endswith("_tier")]


def test_more_images_get_fewer_repeats_and_epochs() -> None:
    recipes = [plan(images).recipe for images in (10, 24, 50, 150, 300, 1000)]
    assert [recipe.repeats for recipe in recipes] == sorted((recipe.repeats for recipe in recipes), reverse=True)
    assert recipes[0].epochs > recipes[3].epochs > recipes[-1].epochs
    assert recipes[-1].repeats == 1


def test_every_non_default_value_has_a_reason() -> None:
    for kind in LoraKind:
        for base in BASES:
            result = plan(24, kind=kind, base=base, vram_gib=8)
            for item in result.reasons:
                assert item.why, item
                assert item.value == result.recipe.model_dump(mode="json")[item.setting]
            explained = {item.setting for item in result.reasons}
            assert explained >= set(result.recipe.non_defaults())


def test_kinds_differ_in_dim_repeats_prompts_and_tagging() -> None:
    character, style, concept = (plan(24, kind=kind) for kind in ("character", "style", "concept"))
    assert (concept.recipe.network_dim, concept.recipe.network_alpha) == (16, 8)
    assert concept.lora_mib == pytest.approx(character.lora_mib / 2, abs=0.1)
    assert style.repeats < character.repeats
    assert len({tuple(item.recipe.sample_prompts) for item in (character, style, concept)}) == 3
    assert len({item.tagging for item in (character, style, concept)}) == 3


def test_bases_differ_in_prompts_tagger_and_prediction_type() -> None:
    pony, noobai, sdxl = plan(24, base="pony"), plan(24, base="NoobAI XL v-pred"), plan(24, base="SDXL 1.0")
    assert pony.base == "Pony V6 XL"
    assert pony.recipe.sample_prompts[0].startswith("score_9, ")
    assert (pony.tagger, sdxl.tagger) == ("wd14", "blip")
    assert (noobai.prediction_type, sdxl.prediction_type) == ("v_prediction", "epsilon")
    for zero_snr in (noobai, plan(24, base="someone/mine", overrides={"zero_terminal_snr": "on"})):
        assert (zero_snr.recipe.noise_offset, zero_snr.recipe.min_snr_gamma) == (0, 0)
        assert not {"noise_offset_range", "noise_offset_zero_snr", "min_snr_zero_snr"} & set(codes(zero_snr))
    assert sdxl.recipe.min_snr_gamma == 5
    chosen = plan(24, base="NoobAI XL v-pred", overrides={"min_snr_gamma": 5})
    assert chosen.recipe.min_snr_gamma == 5
    assert "min_snr_zero_snr" in codes(chosen)
    unknown = plan(24, base="somebody/some-sdxl")
    assert (unknown.base, unknown.tagger, unknown.prediction_type) == ("somebody/some-sdxl", "", "auto")


def test_embedded_base_uses_the_demo_preset() -> None:
    result = plan(20, base="embedded", kind="style", trigger_word="inkstamp_hc")
    preset = Recipe.parse(load_preset("demo"))
    assert result.recipe.model_copy(update={"sample_prompts": []}) == preset.model_copy(update={"sample_prompts": []})
    assert result.recipe.resolution == BASES["embedded"].resolution
    assert result.steps.total_steps == 500
    assert result.tagger == "demo"
    assert result.seconds.high < 600
    assert batch_of(plan(100, base="embedded").recipe) == preset.batch_size
    assert codes(result) == []


def test_overrides_are_kept_and_marked_as_given() -> None:
    result = plan(24, vram_gib=8, overrides={"batch_size": 4, "network_dim": 64, "epochs": 30})
    assert (result.recipe.batch_size, result.recipe.network_dim, result.recipe.epochs) == (4, 64, 30)
    assert result.recipe.network_alpha == 32
    given = reason(result, "network_dim")
    assert (given.given, given.guide) == (True, False)
    assert "32" in given.why
    assert "epochs_tier" in codes(result)


def test_prodigy_gets_its_own_rates() -> None:
    result = plan(24, overrides={"optimizer": "Prodigy"})
    assert (result.recipe.unet_lr, result.recipe.text_encoder_lr) == (1, 0)
    with pytest.raises(ConfigError, match="differ") as caught:
        plan(24, overrides={"optimizer": "Prodigy", "unet_lr": 5e-4, "text_encoder_lr": 1e-4})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        ({}, (5e-5, 1e-5)),
        ({"network_dim": 8}, (2e-4, 4e-5)),
        ({"optimizer": "Lion"}, (1e-5, 2e-6)),
        ({"optimizer": "Prodigy"}, (1, 0)),
        ({"unet_lr": 1e-4}, (1e-4, 1e-5)),
    ],
)
def test_a_loha_gets_rates_that_suit_its_alpha(overrides: dict[str, Any], rates: tuple[float, float]) -> None:
    result = plan(24, overrides={"network_type": "LoHa"} | overrides)
    assert (result.recipe.unet_lr, result.recipe.text_encoder_lr) == pytest.approx(rates)
    assert not {"loha_rate", "unet_lr_range", "text_encoder_rate"} & set(codes(result))
    assert "loha_rate" in codes(plan(24, overrides={"network_type": "LoHa", "unet_lr": 5e-4}))


def test_lora_plus_gets_lower_rates_within_the_guides_range() -> None:
    result = plan(24, overrides={"loraplus_lr_ratio": 16, "loraplus_text_encoder_lr_ratio": 4})
    assert (result.recipe.unet_lr, result.recipe.text_encoder_lr) == pytest.approx((1.25e-4, 5e-5))
    assert "loraplus_rate" not in codes(result)


def test_only_large_sets_get_a_validation_split() -> None:
    assert plan(300).recipe.validation_split == 0
    large = plan(400)
    assert large.recipe.validation_split == 0.1
    assert reason(large, "validation_split").guide
    assert large.steps.samples_per_epoch == 360 * (large.recipe.repeats or 1)
    kept = plan(400, overrides={"validation_split": 0})
    assert kept.steps.samples_per_epoch == 400 * (kept.recipe.repeats or 1)
    assert "held_out_few" in codes(plan(20, overrides={"validation_split": 0.1}))
    assert "held_out_few" not in codes(plan(40, overrides={"validation_split": 0.1}))


@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_plan_sets_suitable_rates_for_each_optimizer(optimizer: Optimizer) -> None:
    result = plan(24, overrides={"optimizer": optimizer.value})
    assert not {warning.code for warning in result.warnings} - {"optimizer_large"}
    rates = (result.recipe.unet_lr, result.recipe.text_encoder_lr)
    assert rates == {
        Optimizer.PRODIGY: (1, 0),
        Optimizer.PRODIGY_PLUS: (1, pytest.approx(0.2)),
        Optimizer.DADAPT_ADAM: (1, 0),
        Optimizer.LION: (pytest.approx(1e-4), pytest.approx(2e-5)),
        Optimizer.LION8BIT: (pytest.approx(1e-4), pytest.approx(2e-5)),
    }.get(optimizer, (5e-4, 1e-4))


def test_a_bases_model_card_sets_its_samples_and_clip_skip() -> None:
    pony, noob, plain = (plan(20, base=base).recipe for base in ("Pony V6 XL", "NoobAI XL v-pred", "SDXL 1.0"))
    assert (pony.sample_sampler, pony.sample_steps, pony.clip_skip) == ("euler_a", 25, 2)
    assert (noob.sample_sampler, noob.sample_steps, noob.sample_guidance) == ("euler", 28, 5)
    assert (plain.sample_sampler, plain.sample_steps, plain.sample_guidance) == ("euler", 20, 6)
    assert plan(20, base="Pony V6 XL", overrides={"sample_steps": 7}).recipe.sample_steps == 7
