from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio import guide
from lora_studio.errors import ConfigError, InputError
from lora_studio.settings.choices import ExistingCaptions, Optimizer
from lora_studio.settings.declare import Group
from lora_studio.settings.job_specs import SweepJob, TagJob, TrainJob, job_from_toml, job_to_toml
from lora_studio.settings.recipe import Recipe, apply_overrides


def test_defaults_are_the_guides() -> None:
    recipe = Recipe()
    assert (recipe.unet_lr, recipe.text_encoder_lr) == (5e-4, 1e-4)
    assert (recipe.network_dim, recipe.network_alpha) == (32, 16)
    assert recipe.optimizer is Optimizer.ADAFACTOR
    assert recipe.resolution == 1024
    for name, advice in guide.RECIPE.items():
        if name in Recipe.model_fields:
            assert getattr(recipe, name) == advice.value, name
    assert TagJob(dataset=Path("d"), tagger="wd14").threshold == 0.35
    sweep = SweepJob(loras=[Path("a")], bases=["b"], prompts=["c"])
    assert sweep.strengths == [0.0, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2]


def test_every_setting_says_what_it_is() -> None:
    groups = {group.value for group in Group}
    for name, field in Recipe.model_fields.items():
        extra: Any = field.json_schema_extra
        assert extra["label"], name
        assert extra["group"] in groups, name
        assert field.description, name
        assert field.description.endswith("."), name
    simple = [name for name, field in Recipe.model_fields.items() if field.json_schema_extra["simple"]]  # type: ignore[call-overload,index]
    assert 3 <= len(simple) <= 8


def test_changed_holds_the_difference_only() -> None:
    assert Recipe().non_defaults() == {}
    changed = Recipe.parse({"epochs": 3, "optimizer": "Prodigy", "network_dim": 32}).non_defaults()
    assert changed == {"epochs": 3, "optimizer": "Prodigy"}
    assert Recipe.parse(changed).non_defaults() == changed


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"unet_lr": 0, "text_encoder_lr": 0}, "nothing would learn"),
        ({"min_bucket_reso": 2048, "max_bucket_reso": 1024}, "Swap them"),
        ({"resolution": 1000, "bucket_no_upscale": False}, "Use 1024"),
        ({"resolution": 64, "bucket_reso_steps": 512, "bucket_no_upscale": False}, "Use 512"),
        ({"resolution": 1001}, "multiple of 8"),
        ({"unet_lr": float("nan")}, "finite"),
        ({"max_grad_norm": float("inf")}, "finite"),
        ({"network_dim": 0}, "greater than or equal to 1"),
        ({"learning_rate": 1e-4}, "learning_rate"),
        ({"optimizer": "Adam"}, "'Adafactor', 'AdamW8bit', 'Prodigy', 'AdamW', 'CAME'"),
        ({"min_timestep": 500, "max_timestep": 500}, "no timestep is left"),
        ({"lr_warmup_steps": 10.5}, "whole steps, or a share"),
        ({"optimizer_args": "betas"}, "write KEY=VALUE"),
        ({"optimizer_args": ["d coef=2"]}, "write KEY=VALUE"),
        ({"ema_decay": 1}, "less than 1"),
    ],
)
def test_what_cannot_work_is_refused_with_words(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Recipe.parse(values)


def test_odd_resolutions_work_without_upscaling() -> None:
    assert Recipe.parse({"resolution": 1000}).resolution == 1000


def test_prompts_may_be_given_as_lines() -> None:
    assert Recipe.parse({"sample_prompts": " a cat \n\n b, c\n"}).sample_prompts == ["a cat", "b, c"]


@pytest.mark.parametrize(
    "given",
    [
        "weight_decay=0.1 betas=0.9,0.99 decouple=True",
        "weight_decay=0.1, betas=0.9,0.99, decouple=True",
        " weight_decay=0.1\nbetas = 0.9,0.99\n\ndecouple=True\n",
        ["weight_decay=0.1", "betas=0.9,0.99", "decouple = True"],
    ],
)
def test_optimizer_arguments_are_taken_as_people_write_them(given: Any) -> None:
    recipe = Recipe.parse({"optimizer_args": given})
    assert recipe.optimizer_args == ["weight_decay=0.1", "betas=0.9,0.99", "decouple=True"]
    assert Recipe.parse(recipe.non_defaults()) == recipe
    assert Recipe.parse({"optimizer_args": "betas=[0.9, 0.99]"}).optimizer_args == ["betas=[0.9, 0.99]"]
    assert Recipe.parse({"optimizer_args": ""}).optimizer_args == []


def test_assignment_is_checked() -> None:
    recipe = Recipe()
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        recipe.epochs = 0
    assert recipe.epochs == 10


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "a\nb", "a\n", "x" * 81, "a:b"])
def test_names_that_are_no_file_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        TrainJob.parse({"name": name, "dataset": "d", "base": "b"})


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)
recipes = st.fixed_dictionaries(
    {},
    optional={
        "unet_lr": st.floats(1e-8, 10),
        "network_dim": st.integers(1, 512),
        "repeats": st.none() | st.integers(1, 100),
        "max_train_steps": st.none() | st.integers(1, 10**6),
        "enable_bucket": st.booleans(),
        "optimizer": st.sampled_from([item.value for item in Optimizer]),
        "sample_prompts": st.lists(texts, max_size=5),
        "seed": st.integers(0, 2**32 - 1),
    },
)


@given(recipe=recipes, trigger=texts, base=texts, folder=st.sampled_from(["a", "/tmp/ü b", 'q"uote']))
def test_train_jobs_survive_their_file(recipe: dict[str, Any], trigger: str, base: str, folder: str) -> None:
    job = TrainJob.parse(
        {"name": "my lora", "dataset": folder, "base": base, "trigger_word": trigger, "recipe": recipe}
    )
    assert job_from_toml(job_to_toml(job)) == job


@given(
    prompts=st.lists(texts.filter(bool), min_size=1, max_size=3),
    strengths=st.lists(st.floats(-4, 4), min_size=1, max_size=5),
)
def test_sweep_jobs_survive_their_file(prompts: list[str], strengths: list[float]) -> None:
    job = SweepJob.parse({"loras": ["a.safetensors"], "bases": ["b"], "prompts": prompts, "strengths": strengths})
    assert job_from_toml(job_to_toml(job)) == job


def test_tag_jobs_survive_their_file() -> None:
    job = TagJob.parse({"dataset": "d", "tagger": "wd14", "existing": "append", "threshold": 0.4})
    text = job_to_toml(job)
    assert text.startswith('kind = "tag"')
    assert job_from_toml(text) == job
    assert job.existing is ExistingCaptions.APPEND


def test_job_files_say_what_is_wrong() -> None:
    with pytest.raises(InputError, match="line 1"):
        job_from_toml("kind = \nname = 'a'\n", "job.toml")
    with pytest.raises(InputError, match="'sing' is unknown") as caught:
        job_from_toml("kind = 'sing'")
    assert "train, tag, sweep" in caught.value.remedy
    with pytest.raises(ConfigError) as problems:
        job_from_toml("kind = 'train'\nname = 'a'\n[recipe]\nepochs = 'many'\n")
    assert len(problems.value.problems) == 3
    assert any(line.startswith("recipe.epochs: ") for line in problems.value.problems)


def test_job_file_without_kind_is_training() -> None:
    assert isinstance(job_from_toml("name = 'a'\ndataset = 'd'\nbase = 'b'\n"), TrainJob)


def test_overrides_read_values_as_toml() -> None:
    values = apply_overrides(
        {"epochs": 3, "repeats": 5},
        [
            "network_dim=64",
            "unet_lr = 1e-4",
            "enable_bucket=false",
            "optimizer=AdamW",
            "repeats=",
            "sample_prompts=['a']",
        ],
    )
    assert values == {
        "epochs": 3, "repeats": None, "network_dim": 64, "unet_lr": 1e-4, "enable_bucket": False,
        "optimizer": "AdamW", "sample_prompts": ["a"],
    }  # fmt: skip
    assert Recipe.parse(values).optimizer is Optimizer.ADAMW


def test_overrides_leave_the_given_values_alone() -> None:
    before = {"epochs": 3}
    apply_overrides(before, ["epochs=5"])
    assert before == {"epochs": 3}


@pytest.mark.parametrize("text", ["epochs", "learning_rate=1", "=1", ""])
def test_unknown_overrides_name_the_known_settings(text: str) -> None:
    with pytest.raises(InputError, match="no such setting") as caught:
        apply_overrides({}, [text])
    assert "unet_lr" in caught.value.remedy


def test_an_override_of_a_wrong_value_names_it() -> None:
    with pytest.raises(ConfigError, match=r"unet_lr.*'abc'"):
        Recipe.parse(apply_overrides({}, ["unet_lr=abc"]))
