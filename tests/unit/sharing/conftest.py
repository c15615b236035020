"""A finished run with samples in a project."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home, Project
from tests.support.jobs import make_project
from tests.support.ledger_runs import make_ledger_run


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(Home(tmp_path / "home"))


@pytest.fixture
def run(project: Project) -> JobFolder:
    return make_ledger_run(project, samples=16)
