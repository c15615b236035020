from __future__ import annotations

import re
from pathlib import Path

import pytest

from lora_studio.errors import ConfigError, InputError
from lora_studio.models.catalogue import BASES, find_base
from lora_studio.planning.advice import recipe_errors
from lora_studio.planning.memory import fits
from lora_studio.planning.plan import plan
from lora_studio.planning.presets import (
    delete_preset,
    export_preset,
    import_preset,
    list_presets,
    load_preset,
    own_presets,
    preset_reasons,
    preset_title,
    rename_preset,
    save_preset,
)
from lora_studio.settings.choices import Optimizer
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.project import Home

NAMES = {
    *("character", "style", "concept", "small-set", "medium-set", "large-set", "quick-test-512", "demo"),
    *("low-memory-6gb", "low-memory-8gb", "gpu-12gb", "gpu-16gb", "gpu-24gb"),
    *("sdxl", "pony", "illustrious", "noobai", "noobai-v-pred", "animagine"),
    *("adamw8bit", "came", "lion", "prodigy", "prodigy-schedule-free", "schedule-free", "dora", "lokr"),
}


def test_lists_all_presets() -> None:
    assert set(list_presets()) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_preset_has_only_non_defaults_with_reasons_and_can_be_planned(name: str) -> None:
    values = load_preset(name)
    recipe = Recipe.parse(values)
    assert set(recipe.non_defaults()) == set(values), "a preset repeats a default"
    reasons = preset_reasons(name)
    assert reasons.keys() == values.keys()
    assert all(reasons.values()), reasons
    assert preset_title(name).endswith((".", "?"))
    assert recipe_errors(recipe) == []
    base = "embedded" if name == "demo" else "SDXL 1.0"
    planned = plan(24, base=base, overrides=values)
    assert planned.steps.total_steps > 0
    assert {setting: planned.recipe.model_dump(mode="json")[setting] for setting in values} == recipe.non_defaults()


def test_presets_do_what_their_titles_say() -> None:
    for name in NAMES:
        if size := re.search(r"(\d+)gb", name):
            assert fits(Recipe.parse(load_preset(name)), None, int(size[1])), name
    v_prediction = find_base("NoobAI XL v-pred")
    assert not recipe_errors(Recipe.parse(load_preset("noobai-v-pred")), v_prediction)
    planned = plan(24, base="NoobAI XL v-pred", overrides=load_preset("noobai-v-pred"))
    assert not {"noise_offset_zero_snr", "min_snr_zero_snr"} & {warning.code for warning in planned.warnings}
    demo = Recipe.parse(load_preset("demo"))
    assert demo.resolution == BASES["embedded"].resolution
    assert demo.min_bucket_reso % demo.bucket_reso_steps == demo.max_bucket_reso % demo.bucket_reso_steps == 0
    assert load_preset("prodigy")["optimizer"] == "Prodigy"


@pytest.mark.parametrize("name", sorted(NAMES - {"demo", "quick-test-512", "style", "large-set", "medium-set"}))
def test_presets_for_any_set_learn_what_a_plan_does(name: str) -> None:
    planned = plan(24, overrides=load_preset(name))
    assert not {"few_steps", "many_steps", "shown_often"} & {warning.code for warning in planned.warnings}


def test_loads_a_preset_file_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("# Mine.\nnetwork_dim = 64 # more detail\nsample_prompts = ['a', 'b'] # two\nseed = 7\n", "utf-8")
    assert load_preset(file) == load_preset(str(file)) == {"network_dim": 64, "sample_prompts": ["a", "b"], "seed": 7}
    assert preset_reasons(file) == {"network_dim": "more detail", "sample_prompts": "two", "seed": ""}
    assert preset_title(file) == "Mine."


@pytest.mark.parametrize("name", ["nonsense", "../presets/demo", "", "nowhere.toml"])
def test_unknown_preset_is_an_error_that_lists_the_presets(name: str) -> None:
    with pytest.raises(InputError, match="low-memory-8gb") as caught:
        load_preset(name)
    assert caught.value.code == "no_preset"


def test_broken_presets_are_errors_that_name_the_file_and_all_problems(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("network_dim = 0\nunet_lr = 'abc'\nlearning_rate = 1\n", "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_preset(file)
    assert len(caught.value.problems) == 3
    assert all(problem.startswith("bad.toml: ") for problem in caught.value.problems)
    file.write_text("network_dim = \n", "utf-8")
    for read in (load_preset, preset_reasons):
        with pytest.raises(InputError, match=r"bad\.toml") as broken:
            read(file)
        assert broken.value.code == "toml"
    file.write_bytes(b"# \xff\xfe\x00")
    with pytest.raises(InputError, match=r"bad\.toml") as unreadable:
        load_preset(file)
    assert unreadable.value.code == "preset"


def test_own_presets_are_saved_listed_loaded_and_deleted(home: Home) -> None:
    recipe = Recipe(network_dim=64, sample_prompts=["a, {trigger}", "b"], optimizer=Optimizer.CAME)
    file = save_preset(home, " Mine 2 ", recipe)
    assert own_presets(home) == ["Mine 2"]
    assert load_preset("Mine 2", home) == load_preset(file) == recipe.non_defaults()
    assert Recipe.parse(load_preset("Mine 2", home)) == recipe
    trashed = delete_preset(home, "Mine 2")
    assert own_presets(home) == []
    assert load_preset(trashed) == recipe.non_defaults()
    with pytest.raises(InputError) as caught:
        delete_preset(home, "Mine 2")
    assert caught.value.code == "no_preset"


@pytest.mark.parametrize("name", ["", "../up", "a/b", "prodigy", "PRODIGY", "mine", "x" * 61, "dot."])
def test_names_of_own_presets_are_checked_and_nothing_is_overwritten(home: Home, name: str) -> None:
    file = save_preset(home, "Mine", Recipe(network_dim=64))
    before = file.read_bytes()
    with pytest.raises(InputError) as caught:
        save_preset(home, name, Recipe(network_dim=8))
    assert caught.value.code == "preset_name"
    assert file.read_bytes() == before
    assert own_presets(home) == ["Mine"]


def test_the_defaults_are_not_saved_as_a_preset(home: Home) -> None:
    with pytest.raises(InputError) as caught:
        save_preset(home, "plain", Recipe())
    assert caught.value.code == "preset_empty"


def test_own_presets_are_renamed(home: Home) -> None:
    save_preset(home, "Mine", Recipe(network_dim=64))
    save_preset(home, "Other", Recipe(network_dim=8))
    text = (home.presets / "Mine.toml").read_bytes()
    assert rename_preset(home, "Mine", " mine ").read_bytes() == text
    assert rename_preset(home, "mine", "Better").read_bytes() == text
    assert own_presets(home) == ["Better", "Other"]
    for name, new_name, code in (
        ("Better", "other", "preset_name"),
        ("Better", "Better", "preset_name"),
        ("Better", "prodigy", "preset_name"),
        ("Better", "../up", "preset_name"),
        ("Mine", "New", "no_preset"),
        ("prodigy", "New", "no_preset"),
    ):
        with pytest.raises(InputError) as caught:
            rename_preset(home, name, new_name)
        assert caught.value.code == code
    assert own_presets(home) == ["Better", "Other"]


def test_presets_are_exported_and_imported_with_their_comments(home: Home, tmp_path: Path) -> None:
    shipped = export_preset(home, "prodigy", tmp_path)
    assert shipped == tmp_path / "prodigy.toml"
    mine = import_preset(home, shipped, "My Prodigy")
    assert mine.read_text("utf-8") == shipped.read_text("utf-8")
    assert load_preset("My Prodigy", home) == load_preset("prodigy")
    exported = export_preset(home, "My Prodigy", tmp_path / "mine.toml")
    assert preset_reasons(exported) == preset_reasons("prodigy")
    assert import_preset(home, exported).stem == "mine"


def test_a_deleted_preset_is_restored_from_the_trash(home: Home) -> None:
    save_preset(home, "Mine", Recipe(network_dim=64))
    import_preset(home, delete_preset(home, "Mine"), "Mine")
    assert load_preset("Mine", home) == {"network_dim": 64}


def test_an_export_overwrites_nothing(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "kept.toml"
    file.write_text("seed = 1", "utf-8")
    for target in (file, tmp_path / "preset.txt"):
        with pytest.raises(InputError) as caught:
            export_preset(home, "demo", target)
        assert caught.value.code == "preset_file"
    assert file.read_text("utf-8") == "seed = 1"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["kept.toml"]


@pytest.mark.parametrize(
    ("text", "code"),
    [("", "preset_empty"), ("network_dim = ", "toml"), ("network_dim = 0", "config"), ("seed = 3", "preset_name")],
)
def test_only_presets_that_work_are_imported_and_none_is_replaced(
    home: Home, tmp_path: Path, text: str, code: str
) -> None:
    before = save_preset(home, "Mine", Recipe(network_dim=64)).read_bytes()
    file = tmp_path / "mine.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(InputError) as caught:
        import_preset(home, file)
    assert caught.value.code == code
    assert (home.presets / "Mine.toml").read_bytes() == before
    assert own_presets(home) == ["Mine"]
