"""What is known about a LoRA comes from its file, its run and the project's sweeps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_studio.errors import InputError
from lora_studio.sharing.facts import chosen_lora, read_facts, run_of
from lora_studio.sharing.folder import build_release
from lora_studio.sharing.options import ReleaseOptions
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Project
from tests.support.jobs import LORA, make_sweep


def with_metadata(path: Path, **metadata: str) -> Path:
    with safe_open(LORA, "pt") as file:
        kept = file.metadata() or {}
    save_file(load_file(LORA), path, metadata={**kept, **metadata})
    return path


def test_a_run_says_how_it_was_trained(run: JobFolder) -> None:
    facts = read_facts(run.path / "ink.safetensors")
    assert facts.run is not None
    assert facts.run.path == run.path
    assert facts.trigger_word == "inkstamp_hc"
    assert facts.base_repo == "stabilityai/stable-diffusion-xl-base-1.0"
    assert facts.figures is not None
    assert facts.figures.steps == 60
    assert [picture.prompt for picture in facts.pictures[:2]] == ["clock", "inkstamp_hc, face"], "latest first"
    assert len(facts.pictures) == 8


def test_sweeps_with_the_lora_give_cells_and_grids(project: Project, run: JobFolder) -> None:
    lora = run.path / "ink.safetensors"
    sweep = make_sweep(project, [lora])
    drawn = sorted((sweep.path / "cells").iterdir())[-1]
    cells = [
        {"path": str(drawn), "prompt": "inkstamp_hc, face", "strength": 0.7, "lora": str(lora)},
        {"path": str(drawn), "prompt": "clock", "strength": 0.0, "lora": None},
        {"path": str(sweep.path / "cells" / "gone.png"), "prompt": "clock", "strength": 1.0, "lora": str(lora)},
    ]
    sweep.write_result({"grid": str(sweep.path / "grid.png"), "cells": cells})
    other = make_sweep(project, [LORA])
    facts = read_facts(lora)
    assert facts.grids == (sweep.path / "grid.png",)
    assert [(picture.path, picture.strength) for picture in facts.pictures if "cells" in picture.path.parts] == [
        (drawn, 0.7)
    ]
    assert other.path / "grid.png" not in facts.grids


def test_a_cell_is_found_after_its_project_moved(project: Project, run: JobFolder, tmp_path: Path) -> None:
    lora = run.path / "ink.safetensors"
    sweep = make_sweep(project, [lora])
    drawn = sorted((sweep.path / "cells").iterdir())[-1]
    sweep.write_result(
        {"cells": [{"path": str(drawn), "prompt": "clock", "strength": 1.0, "lora": str(lora)}], "grid": None}
    )
    shutil.move(project.path, tmp_path / "home" / "projects" / "moved")
    facts = read_facts(tmp_path / "home" / "projects" / "moved" / "runs" / run.name / "ink.safetensors")
    assert any(picture.path.name == drawn.name for picture in facts.pictures)


def test_a_foreign_file_says_what_its_metadata_say(tmp_path: Path) -> None:
    folders = {"10_ink": {"n_repeats": 10, "img_count": 4}, "5_more": {"n_repeats": 5, "img_count": 2}}
    tags = {"10_ink": {"cat": 4, " red ": 2}, "5_more": {"cat": 1}}
    path = with_metadata(
        tmp_path / "foreign.safetensors",
        ss_sd_model_name="ponyDiffusionV6XL.safetensors",
        ss_dataset_dirs=json.dumps(folders),
        ss_tag_frequency=json.dumps(tags),
    )
    facts = read_facts(path)
    assert (facts.run, facts.job, facts.images) == (None, None, 6)
    assert facts.tags == (("cat", 5), ("red", 2))
    assert facts.base_name == "ponyDiffusionV6XL.safetensors"
    assert facts.base_repo == ""


@pytest.mark.parametrize("broken", ["", "{", "[1]", '{"a": 3}', '{"a": {"cat": "many"}}'])
def test_damaged_metadata_are_unknown(tmp_path: Path, broken: str) -> None:
    path = with_metadata(tmp_path / "x.safetensors", ss_dataset_dirs=broken, ss_tag_frequency=broken)
    facts = read_facts(path)
    assert (facts.images, facts.tags) == (None, ())


def test_the_best_checkpoint_of_a_run_is_chosen_before_the_last(run: JobFolder) -> None:
    final = run.path / "ink.safetensors"
    assert chosen_lora(run.path) == final
    best = run.path / "checkpoints" / "ink-best.safetensors"
    best.parent.mkdir(exist_ok=True)
    shutil.copyfile(LORA, best)
    assert chosen_lora(run.path) == best
    assert chosen_lora(final) == final
    found = run_of(best)
    assert found is not None
    assert found.path == run.path
    for path in (final, best):
        path.unlink()
    with pytest.raises(InputError) as caught:
        chosen_lora(run.path)
    assert caught.value.code == "no_lora"


def test_a_sweep_is_not_a_run(project: Project, run: JobFolder) -> None:
    with pytest.raises(InputError) as caught:
        chosen_lora(make_sweep(project, [run.path / "ink.safetensors"]).path)
    assert caught.value.code == "no_run"


def test_the_latest_test_recommends_the_strength(project: Project, run: JobFolder) -> None:
    lora = run.path / "ink.safetensors"
    sweep = make_sweep(project, [lora])
    measured = {0.0: (0.1, 0.01), 0.7: (0.6, 0.05), 1.0: (0.62, 0.05)}
    rows = [
        {"base": "SDXL 1.0", "lora": "ink", "strength": strength, "closeness": closeness}
        for strength, closeness in measured.items()
    ]
    pictures = {"features": "demo", "images": 3, "rows": rows}
    (sweep.path / "measures.json").write_text(json.dumps({"rows": [], "pictures": pictures}), "utf-8")
    advice = read_facts(lora).advice
    assert advice is not None
    assert advice.strength == 0.7
    result = build_release(lora, ReleaseOptions())
    assert result.strength == 0.7
    assert build_release(lora, ReleaseOptions(strength=1.1)).strength == 1.1


def test_without_measures_nothing_is_recommended(project: Project, run: JobFolder) -> None:
    make_sweep(project, [run.path / "ink.safetensors"])
    assert read_facts(run.path / "ink.safetensors").advice is None
