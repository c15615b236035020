"""The options of the commands against the fields that they set."""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import typer
from pydantic import TypeAdapter
from typer.testing import CliRunner

from lora_studio import api
from lora_studio.cli import main
from lora_studio.cli.options import field_help
from lora_studio.errors import ConfigError
from lora_studio.planning.plan import plan
from lora_studio.settings.choices import LoraKind
from lora_studio.settings.declare import CommaSeparated, Settings, split_commas
from lora_studio.settings.job_specs import AnyJob, SweepJob, TagJob, TrainJob, job_to_toml
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.project import Home, ProjectInfo

COMMANDS: Any = vars(typer.main.get_command(main.app))["commands"]
OPTIONS = {
    name: {option.name: option for option in COMMANDS[name].params} for name in ("tag", "train", "sweep", "plan")
}
MODELS: dict[str, type[Settings]] = {"tag": TagJob, "train": TrainJob, "sweep": SweepJob, "plan": Recipe}
DERIVED = [
    (command, model, name)
    for command, model in MODELS.items()
    for name in model.model_fields
    if name in OPTIONS[command]
]


def test_every_command_sets_fields_of_its_model() -> None:
    counts = {command: sum(command == other for other, _, _ in DERIVED) for command in OPTIONS}
    assert counts == {"tag": 11, "train": 8, "sweep": 19, "plan": 4}


@pytest.mark.parametrize(("command", "model", "name"), DERIVED)
def test_options_have_the_fields_help_default_and_bounds(command: str, model: type[Settings], name: str) -> None:
    option, field = OPTIONS[command][name], model.model_fields[name]
    assert option.help.removesuffix(" Can be repeated.") == field_help(model, name)
    assert field.description
    assert field.description in option.help
    bounds = {
        bound: getattr(constraint, bound)
        for constraint in field.metadata
        for bound in ("ge", "le")
        if hasattr(constraint, bound)
    }
    if bounds:
        _, shown = option.get_help_record(typer.Context(COMMANDS[command]))
        assert f"{bounds['ge']}<=x<={bounds['le']}" in shown
    if command == "plan":
        assert option.default is None  # the plan chooses it
    elif CommaSeparated in field.metadata:
        (item_type,) = get_args(field.annotation)
        assert TypeAdapter(list[item_type]).validate_python(split_commas(option.default)) == field.default
    elif field.is_required():
        assert option.required is (command not in ("train", "sweep"))  # a job file or --resume has it
    else:
        default = field.default.value if isinstance(field.default, enum.Enum) else field.default
        assert option.default == default


def test_plan_has_the_defaults_of_a_new_project() -> None:
    for name, field in {"kind": "kind", "base": "base", "trigger": "trigger_word"}.items():
        assert OPTIONS["plan"][name].default == ProjectInfo.model_fields[field].default
    for name, field in {"base": "base", "trigger": "trigger_word", "regularization": "regularization"}.items():
        assert OPTIONS["plan"][name].help == field_help(TrainJob, field)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[AnyJob]:
    """The jobs that commands pass to `api.run_job`, which does not run them."""
    passed: list[AnyJob] = []

    def keep(job: AnyJob, **options: Any) -> None:
        passed.append(job)
        raise typer.Exit

    monkeypatch.setattr(api, "run_job", keep)
    return passed


@pytest.fixture
def unplanned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `train` keep the recipe that it was given."""

    def keep(job: TrainJob, kind: LoraKind, home: Home) -> SimpleNamespace:
        return SimpleNamespace(recipe=job.recipe, describe=lambda: "")

    monkeypatch.setattr(api, "plan_on_this_machine", keep)


def run(*words: str) -> None:
    done = CliRunner().invoke(main.app, words)
    if done.exception is not None:
        raise done.exception
    assert done.exit_code == 0, done.output


def test_options_that_are_not_given_have_the_models_values(jobs: list[AnyJob], unplanned: None) -> None:
    run("tag", "images", "--tagger", "wd14")
    run("train", "--dataset", "images", "--base", "sdxl")
    run(
        "sweep",
        "a.safetensors",
        "b.safetensors",
        "--base",
        "sdxl",
        "--prompt",
        "{trigger}, smiling",
        "--prompt",
        "{trigger}",
    )
    assert jobs == [
        TagJob.parse({"dataset": "images", "tagger": "wd14"}),
        TrainJob.parse({"dataset": "images", "base": "sdxl"}),
        SweepJob.parse(
            {
                "loras": ["a.safetensors", "b.safetensors"],
                "bases": ["sdxl"],
                "prompts": ["{trigger}, smiling", "{trigger}"],
            }
        ),
    ]


def test_given_options_set_the_fields(jobs: list[AnyJob]) -> None:
    run(
        "tag",
        "images",
        "--tagger",
        "wd14",
        "--tagger",
        "blip",
        "--exclude",
        "a, b",
        "--only",
        "c",
        "--threshold",
        "0.5",
    )
    run("sweep", "a.safetensors", "--base", "sdxl", "--prompt", "p", "--strengths", "0,1.5", "--negative", "blurry")
    tagging, sweep = jobs
    assert isinstance(tagging, TagJob)
    assert (tagging.tagger, tagging.also) == ("wd14", ["blip"])
    assert (tagging.exclude_tags, tagging.only_tags, tagging.threshold) == (["a", "b"], ["c"], 0.5)
    assert isinstance(sweep, SweepJob)
    assert (sweep.strengths, sweep.negative_prompt) == ([0, 1.5], "blurry")


def test_train_options_override_the_job_file(jobs: list[AnyJob], tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    stored = TrainJob.parse(
        {"name": "a", "dataset": "d", "base": "b", "num_processes": 2, "recipe": {"epochs": 3, "batch_size": 4}}
    )
    file.write_text(job_to_toml(stored), "utf-8")
    run("train", str(file))
    run("train", str(file), "--num-processes", "1", "--name", "lora", "--vae", "v", "--set", "epochs=5")
    changes = {"num_processes": 1, "name": "lora", "vae": "v", "recipe": {"epochs": 5, "batch_size": 4}}
    assert jobs == [stored, TrainJob.parse(stored.model_dump() | changes)]


def test_train_without_a_job_file_trains_the_plan(
    jobs: list[AnyJob], image_folder: Callable[..., Path], home: Home
) -> None:
    folder = image_folder(4)
    run("train", "--dataset", str(folder), "--base", "sdxl", "--kind", "style", "--set", "network_dim=8")
    [job] = jobs
    assert isinstance(job, TrainJob)
    planned = plan(folder, base="sdxl", kind="style", overrides={"network_dim": 8}, home=home)
    assert job.recipe == planned.recipe
    assert job.recipe.network_dim == 8
    assert planned.steps.total_steps > 500


def test_train_names_the_options_that_are_missing(jobs: list[AnyJob]) -> None:
    with pytest.raises(ConfigError) as caught:
        run("train", "--name", "a")
    assert [problem.split()[0] for problem in caught.value.problems] == ["--dataset", "--base"]
