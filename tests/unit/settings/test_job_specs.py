from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lora_studio.errors import ConfigError, InputError
from lora_studio.settings.choices import ExistingCaptions, Optimizer
from lora_studio.settings.job_specs import SweepJob, TagJob, TrainJob, job_from_toml, job_to_toml
from lora_studio.settings.ranges import expand_ranges
from lora_studio.settings.recipe import Recipe


def test_defaults_are_the_guides() -> None:
    assert TagJob(dataset=Path("d"), tagger="wd14").threshold == 0.35
    sweep = SweepJob(loras=[Path("a")], bases=["b"], prompts=["c"])
    assert sweep.strengths == [0.0, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2]


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "a\nb", "a\n", "x" * 81, "a:b"])
def test_invalid_file_names_are_refused(name: str) -> None:
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
def test_train_job_round_trips_through_toml(recipe: dict[str, Any], trigger: str, base: str, folder: str) -> None:
    job = TrainJob.parse(
        {"name": "my lora", "dataset": folder, "base": base, "trigger_word": trigger, "recipe": recipe}
    )
    assert job_from_toml(job_to_toml(job)) == job


@given(
    prompts=st.lists(texts.filter(bool), min_size=1, max_size=3),
    strengths=st.lists(st.floats(-4, 4), min_size=1, max_size=5),
)
def test_sweep_job_round_trips_through_toml(prompts: list[str], strengths: list[float]) -> None:
    job = SweepJob.parse({"loras": ["a.safetensors"], "bases": ["b"], "prompts": prompts, "strengths": strengths})
    assert job_from_toml(job_to_toml(job)) == job


def test_strengths_and_seeds_are_lists_and_ranges() -> None:
    values: dict[str, Any] = {"bases": ["b"], "prompts": ["p"]}
    job = SweepJob.parse(values | {"strengths": "0, 0.6:1.2:0.2", "seeds": "3, 7:9"})
    assert (job.strengths, job.seeds) == ([0, 0.6, 0.8, 1.0, 1.2], [3, 7, 8, 9])
    assert SweepJob.parse(values | {"seed": 7}).seeds == [7]
    assert job_from_toml('kind = "sweep"\nbases = ["b"]\nprompts = ["p"]\nseed = 7') == SweepJob.parse(
        values | {"seed": 7}
    )
    for wrong in (
        {"strengths": "0:1:0"},
        {"strengths": "0:1:-0.1"},
        {"strengths": "a:1"},
        {"strengths": "0:1:0.1:2"},
        {"strengths": "0:1e9:0.001"},
        {"strengths": "0:inf"},
        {"seeds": "0.5:2"},
        {"seed": 1, "seeds": [2]},
        {"rows": "seed", "columns": "seed"},
        {"seeds": "1:32", "prompts": [f"{number}" for number in range(32)], "loras": ["a"], "strengths": "0:1:0.1"},
    ):
        with pytest.raises(ConfigError):
            SweepJob.parse(values | wrong)


def test_a_single_setting_of_a_sweep_can_be_checked() -> None:
    checked = SweepJob.__pydantic_validator__
    checked.validate_assignment(SweepJob.model_construct(), "strengths", "0:1:0.5")
    checked.validate_assignment(SweepJob.model_construct(), "seeds", "1, 2")
    with pytest.raises(ValidationError, match="range"):
        checked.validate_assignment(SweepJob.model_construct(), "seeds", "1:0")


def test_stacked_loras_are_texts_with_strengths() -> None:
    values: dict[str, Any] = {"bases": ["b"], "prompts": ["p"]}
    given = ["a.safetensors", "~/b.safetensors:0.6", "c:d.safetensors:-0.5:0"]
    job = SweepJob.parse(values | {"with_loras": given})
    found = [(str(lora.path), lora.strength, lora.text_encoder_strength) for lora in job.with_loras]
    assert found == [("a.safetensors", 1, None), ("~/b.safetensors", 0.6, None), ("c:d.safetensors", -0.5, 0)]
    assert job_from_toml(job_to_toml(job)) == job
    assert job.with_absolute_paths().with_loras[1].path == Path.home() / "b.safetensors"
    with pytest.raises(ConfigError, match="with_loras"):
        SweepJob.parse(values | {"with_loras": ["a.safetensors:9"]})


@given(first=st.integers(-4000, 4000), steps=st.integers(0, 31), step=st.integers(1, 900))
def test_a_range_has_the_decimals_that_a_user_would_write(first: int, steps: int, step: int) -> None:
    text = f"{first / 1000}:{(first + steps * step) / 1000}:{step / 1000}"
    assert [float(part) for part in expand_ranges(text)] == [(first + n * step) / 1000 for n in range(steps + 1)]


def test_tag_job_round_trips_through_toml() -> None:
    job = TagJob.parse({"dataset": "d", "tagger": "wd14", "existing": "append", "threshold": 0.4})
    text = job_to_toml(job)
    assert text.startswith('kind = "tag"')
    assert job_from_toml(text) == job
    assert job.existing is ExistingCaptions.APPEND


def test_tag_job_takes_several_taggers_and_texts_with_commas() -> None:
    job = TagJob.parse({"dataset": "d", "tagger": ["wd14", "blip"], "also": "demo", "exclude_tags": "a, b,"})
    assert (job.tagger, job.also, job.exclude_tags) == ("wd14", ["blip", "demo"], ["a", "b"])
    with pytest.raises(ConfigError, match="tagger"):
        TagJob.parse({"dataset": "d", "tagger": []})


def test_paths_of_a_job_can_be_made_absolute() -> None:
    here = Path.cwd()
    sweep = SweepJob(loras=[Path("a"), Path("~/b")], bases=["c"], prompts=["p"]).with_absolute_paths()
    assert (sweep.loras, sweep.bases) == ([here / "a", Path.home() / "b"], ["c"])
    train = TrainJob(dataset=Path("d"), base="b", regularization=Path("../r")).with_absolute_paths()
    assert (train.dataset, train.regularization, train.network_weights) == (here / "d", here.parent / "r", None)


def test_broken_job_files_are_refused() -> None:
    with pytest.raises(InputError, match="line 1"):
        job_from_toml("kind = \nname = 'a'\n", "job.toml")
    with pytest.raises(InputError, match="'sing'") as caught:
        job_from_toml("kind = 'sing'")
    assert caught.value.code == "job_kind"
    assert "train, tag, sweep" in caught.value.remedy
    with pytest.raises(ConfigError) as problems:
        job_from_toml("kind = 'train'\nname = 'a'\n[recipe]\nepochs = 'many'\n")
    assert len(problems.value.problems) == 3
    assert any(line.startswith("recipe.epochs: ") for line in problems.value.problems)


def test_job_file_without_kind_is_a_training() -> None:
    assert isinstance(job_from_toml("name = 'a'\ndataset = 'd'\nbase = 'b'\n"), TrainJob)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strengths": "0:1:0.05", "width": 4096, "height": 4096}, "megapixels together, more than 12,000"),
        ({"strengths": "0:1:0.05", "steps": 200}, "200 steps of"),
        ({"strengths": "0:1:0.05", "loras": ["a", "b"]}, "cells, more than 10,000"),
    ],
)
def test_sweeps_that_nobody_waits_for_are_refused_with_the_limit(values: dict[str, Any], message: str) -> None:
    large = {"loras": ["a"], "bases": ["b"], "prompts": [f"p{number}" for number in range(20)], "seeds": "1:15"}
    assert SweepJob.parse(large | {"strengths": "0:1:0.05"}).steps == 25
    with pytest.raises(ConfigError, match=message):
        SweepJob.parse(large | values)


def test_every_number_of_a_training_has_an_upper_bound() -> None:
    unbounded = [
        name
        for name, info in Recipe.model_fields.items()
        if {int, float} & {info.annotation, *get_args(info.annotation)}
        and not any(hasattr(bound, "le") or hasattr(bound, "lt") for bound in info.metadata)
    ]
    assert not unbounded
