"""The command `runs`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import lora_studio
from lora_studio.cli.main import app
from lora_studio.errors import InputError
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.jobs import make_project
from tests.support.ledger_runs import make_ledger_run


@pytest.fixture
def runs(home: Home) -> list[JobFolder]:
    project = make_project(home, images=0)
    first = make_ledger_run(project, final=0.12)
    return [first, make_ledger_run(project, first, unet_lr=1e-4)]


def invoke(*words: str | Path) -> Result:
    done = CliRunner().invoke(app, ["runs", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done


def test_prints_the_ledger(runs: list[JobFolder]) -> None:
    project = runs[0].path.parents[1]
    printed = json.loads(invoke(project, "--json").stdout)
    assert [(run["run"], run["parent"]) for run in printed] == [("001-ink", None), ("002-ink", "001-ink")]
    assert printed[1]["differences"] == "unet_lr: 5e-4 → 1e-4"
    assert invoke("--all", "--csv").stdout.startswith("project,run,state,parent,differences,")
    assert len(invoke("--all", "--markdown").stdout.splitlines()) == 4
    assert "002-ink" in invoke("--all").stdout


def test_compares_two_runs(runs: list[JobFolder]) -> None:
    project = runs[0].path.parents[1]
    compared = json.loads(invoke(project, "--compare", "1", "002-ink", "--json").stdout)
    assert compared["settings"] == {"unet_lr": ["5e-4", "1e-4"]}
    assert [len(points) for points in compared["validation"]] == [5, 5]
    assert "unet_lr" in invoke(project, "--compare", "001", "002").stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [(("--csv", "--json"), "usage"), (("--compare", "1", "9"), "no_run"), (("--compare", "1", "2", "--csv"), "usage")],
)
def test_wrong_options_are_refused(runs: list[JobFolder], words: tuple[str, ...], code: str) -> None:
    error = CliRunner().invoke(app, ["runs", str(runs[0].path.parents[1]), *words]).exception
    assert isinstance(error, InputError)
    assert error.code == code


def test_python_returns_the_same(runs: list[JobFolder], home: Home) -> None:
    table = lora_studio.runs(everything=True, home=home)
    assert list(table["run"]) == ["001-ink", "002-ink"]
    comparison = lora_studio.compare_runs(*(run.path for run in runs))
    assert [item.name for item in comparison.settings] == ["unet_lr"]


def test_a_run_made_from_a_job_file_of_a_run_has_it_as_its_parent(
    runs: list[JobFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = []
    monkeypatch.setattr("lora_studio.cli.main._run", lambda job, *places: jobs.append(job) or {})
    CliRunner().invoke(app, ["train", str(runs[0].job_file), "--set", "epochs=2", "--json"])
    assert (jobs[0].parent, jobs[0].dataset) == (runs[0].path, runs[0].job().dataset)
