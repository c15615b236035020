"""The ledger as a table: columns, CSV and Markdown."""

from __future__ import annotations

import io

import pandas as pd
import pytest

from lora_studio.errors import InputError
from lora_studio.ledger.compare import compare, find_run
from lora_studio.ledger.records import RunRecord, project_records, read_records
from lora_studio.ledger.table import COLUMNS, TEXT_COLUMNS, row, to_csv, to_frame, to_markdown
from lora_studio.workspace.job_folder import JobState
from lora_studio.workspace.project import Home
from lora_studio.workspace.run_notes import change_notes
from tests.support.jobs import make_project
from tests.support.ledger_runs import make_ledger_run


@pytest.fixture
def records(home: Home) -> list[RunRecord]:
    project = make_project(home, images=0)
    first = make_ledger_run(project, final=0.12)
    second = make_ledger_run(project, first, final=0.1, unet_lr=1e-4)
    change_notes(second.path, stars=5, notes="soft | but\ncrisp")
    return project_records(project)


def test_the_frame_has_a_row_per_run(records: list[RunRecord]) -> None:
    frame = to_frame(records)
    assert list(frame.columns) == list(COLUMNS)
    assert frame["parent"].isna()[0]
    assert frame["parent"][1] == "001-ink"
    assert list(frame["stars"]) == [0, 5]
    assert frame["validation_loss"].is_monotonic_decreasing
    assert frame["differences"][1] == "unet_lr: 5e-4 → 1e-4"
    assert to_frame([]).empty


def test_a_run_that_stopped_by_itself_has_the_sign(records: list[RunRecord]) -> None:
    records[1].folder.update_status(state=JobState.STOPPED, code="plateau")
    records[0].folder.update_status(state=JobState.FAILED, code="nan")
    rows = [row(record) for record in read_records([record.folder for record in records], "")]
    assert [each["stopped_by"] for each in rows] == [None, "plateau"]


def test_csv_is_read_back(records: list[RunRecord]) -> None:
    frame = pd.read_csv(io.StringIO(to_csv(records)))
    assert list(frame.columns) == list(COLUMNS)
    assert frame["notes"][1] == "soft | but\ncrisp"


def test_markdown_has_one_line_per_run(records: list[RunRecord]) -> None:
    lines = to_markdown(records).splitlines()
    assert len(lines) == 2 + len(records)
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(TEXT_COLUMNS) + 1}


def test_a_comparison_has_only_what_differs(records: list[RunRecord]) -> None:
    result = compare(records)
    assert [(item.name, item.values) for item in result.settings] == [("unet_lr", ("5e-4", "1e-4"))]
    assert result.is_fair
    summary = result.summary()
    assert [run["run"] for run in summary["runs"]] == ["001-ink", "002-ink"]
    assert [point["step"] for point in summary["validation"][0]] == [0, 15, 30, 45, 60]
    with pytest.raises(InputError) as raised:
        compare(records[:1])
    assert raised.value.code == "compare"


@pytest.mark.parametrize("name", ["002-ink", "2", "002", "ink/002-ink"])
def test_runs_are_found_by_name_and_number(records: list[RunRecord], name: str) -> None:
    assert find_run(records, name) is records[1]


def test_an_unknown_or_ambiguous_run_is_refused(records: list[RunRecord], home: Home) -> None:
    other = make_project(home, "other", images=0)
    make_ledger_run(other)
    for name in ("009", "1"):
        with pytest.raises(InputError) as raised:
            find_run([*records, *project_records(other)], name)
        assert raised.value.code == "no_run"
