"""Sweeps on the tiny SDXL: cells, their order, reuse after a stop, parameters and measures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora_studio.errors import InputError
from lora_studio.models.png_info import read_parameters, read_text
from lora_studio.sampling import sweep as sweep_module
from lora_studio.sampling.pipeline import SamplingPipeline, load_sampling_pipeline
from lora_studio.sampling.sweep import SweepResult, sweep
from lora_studio.settings.choices import BasePrecision, Precision
from lora_studio.settings.job_specs import SweepJob
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.events import Events, append_to
from tests.support.kohya_lora import make_lora, save_lora

TRIGGER = {"modelspec.trigger_phrase": "inkstamp_hc"}


@pytest.fixture(scope="module")
def loras(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two LoRAs; only the first one changes the text encoders."""
    folder = tmp_path_factory.mktemp("loras")
    pipeline = load_sampling_pipeline(str(tiny_base), home=Home(folder), precision=Precision.AUTO)
    return [
        save_lora(make_lora(pipeline.pipe, text_encoders=texts, seed=seed)[0], folder / name, **TRIGGER)
        for name, texts, seed in (("ink-000001.safetensors", True, 1), ("ink.safetensors", False, 2))
    ]


def make_job(base: Path, loras: list[Path], **changes: Any) -> SweepJob:
    values = {
        "loras": loras,
        "bases": [str(base)],
        "prompts": ["{trigger}, face", "clock"],
        "strengths": [0, 0.7, 1.0],
        "steps": 2,
        "guidance": 5.0,
        "seed": 9,
    }
    return SweepJob.parse({name: value for name, value in (values | changes).items() if value is not None})


def run(
    job: SweepJob, folder: Path, home: Home, *, stop_after: int | None = None, resume: bool = False
) -> tuple[SweepResult, Events]:
    """Run a sweep, with a stop request after `stop_after` cells."""
    events: Events = []

    def should_stop() -> bool:
        return stop_after is not None and sum(event == "cell" for event, _ in events) >= stop_after

    job_folder = JobFolder(folder) if resume else JobFolder.create(folder, job)
    return sweep(job, job_folder, home=home, report=append_to(events), should_stop=should_stop, resume=resume), events


@pytest.fixture(scope="module")
def done(
    tiny_base: Path, loras: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[SweepResult, Events, Path]:
    """A complete sweep, shared by tests that must not change it."""
    folder = tmp_path_factory.mktemp("sweep") / "001"
    return *run(make_job(tiny_base, loras), folder, Home(folder.parent / "home")), folder


@pytest.fixture
def copied(done: tuple[SweepResult, Events, Path], tmp_path: Path) -> Path:
    """A copy of the complete sweep."""
    return Path(shutil.copytree(done[2], tmp_path / "001"))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_every_cell_is_generated_once(done: tuple[SweepResult, Events, Path], loras: list[Path]) -> None:
    result, events, folder = done
    found = [(cell.lora, cell.strength, cell.prompt) for cell in result.cells]
    prompts = ["inkstamp_hc, face", "clock"]
    expected = [(None, 0.0, prompt) for prompt in prompts]
    expected += [(lora, strength, prompt) for lora in loras for strength in (1.0, 0.7) for prompt in prompts]
    assert found == expected
    assert not result.stopped
    assert len(list((folder / "cells").iterdir())) == len(expected)
    cells = [values for event, values in events if event == "cell"]
    assert [folder / values["path"] for values in cells] == [cell.path for cell in result.cells]
    assert [values["done"] for values in cells] == list(range(1, 11))
    assert {values["total"] for values in cells} == {10}
    assert cells[0]["seconds_left"] > 0
    assert cells[-1]["seconds_left"] == 0
    assert SweepResult.model_validate_json(result.model_dump_json()) == result


def test_strengths_and_loras_differ_and_seed_is_shared(done: tuple[SweepResult, Events, Path]) -> None:
    pictures = [pixels(cell.path).astype(int) for cell in done[0].cells]
    for index, one in enumerate(pictures):
        for other in pictures[:index]:
            assert np.abs(one - other).max() > 0
    # One seed: the noise determines more of an image than the prompt does.
    assert np.corrcoef(pictures[0].ravel(), pictures[2].ravel())[0, 1] > 0.5
    assert {cell.seed for cell in done[0].cells} == {9}


def test_base_cell_equals_diffusers(done: tuple[SweepResult, Events, Path], tiny_base: Path, home: Home) -> None:
    pipeline = load_sampling_pipeline(str(tiny_base), home=home, precision=Precision.AUTO)
    expected = pipeline.pipe(
        "inkstamp_hc, face",
        num_inference_steps=2,
        guidance_scale=5.0,
        generator=torch.Generator("cpu").manual_seed(9),
        width=64,
        height=64,
    ).images[0]
    difference = np.abs(pixels(done[0].cells[0].path).astype(int) - np.asarray(expected).astype(int))
    assert difference.max() <= 1  # the cell was one of a batch


def test_cells_contain_their_parameters(done: tuple[SweepResult, Events, Path], tiny_base: Path) -> None:
    from lora_studio.lora.header import read_lora_header

    cell = done[0].cells[4]
    short = read_lora_header(cell.lora).model_hash[:12]
    first, settings = read_parameters(cell.path).splitlines()
    assert first == "inkstamp_hc, face <lora:ink-000001:0.7>"
    assert settings.startswith("Steps: 2, Sampler: Euler, CFG scale: 5, Seed: 9, Size: 64x64, Model hash: ")
    assert f"Model: {tiny_base.name}, Clip skip: 2, RNG: CPU, Precision: " in settings
    workflow = json.loads(read_text(cell.path, "prompt"))
    nodes = {node["class_type"]: node["inputs"] for node in workflow.values()}
    assert (nodes["KSampler"]["seed"], nodes["KSampler"]["steps"], nodes["KSampler"]["cfg"]) == (9, 2, 5.0)
    assert nodes["LoraLoader"]["strength_model"] == 0.7
    assert nodes["LoraLoader"]["lora_name"] == "ink-000001.safetensors"
    assert settings.endswith(f'Lora hashes: "ink-000001: {short}"')
    bare = read_parameters(done[0].cells[0].path)
    assert bare.splitlines()[0] == "inkstamp_hc, face"
    assert "Lora" not in bare
    grid = read_parameters(done[0].grid)
    assert 'Prompts: "inkstamp_hc, face | clock", Strengths: "0, 0.7, 1"' in grid
    assert str(tiny_base.parent) not in grid + bare + settings


def test_measured_change_grows_with_the_strength(done: tuple[SweepResult, Events, Path]) -> None:
    result, _, folder = done
    assert json.loads((folder / "measures.json").read_text("utf-8")) == result.measures
    rows = result.measures["rows"]
    assert [(row["lora"], row["strength"]) for row in rows] == [
        (lora, strength) for lora in ("ink-000001", "ink") for strength in (0.0, 0.7, 1.0)
    ]
    assert set(rows[0]) == {"base", "lora", "strength", *result.measures["meaning"]}
    for first in (0, 3):
        off, middle, full = (row["change"] for row in rows[first : first + 3])
        assert off == 0
        assert 0 < middle < full
    cells = {(cell.lora.stem if cell.lora else None, cell.strength, cell.prompt): cell.path for cell in result.cells}
    differences = [
        np.abs(pixels(cells["ink", 1.0, prompt]) / 255 - pixels(cells[None, 0.0, prompt]) / 255).mean()
        for prompt in ("inkstamp_hc, face", "clock")
    ]
    assert rows[5]["change"] == pytest.approx(np.mean(differences), abs=1e-4)


def test_bundled_embeddings_and_missing_layers_are_warned_of(tiny_base: Path, tmp_path: Path, home: Home) -> None:
    path = tmp_path / "bundle.safetensors"
    tensors = {"bundle_emb.my_word.clip_l": torch.ones(1, 16), "diffusion_model.out.0.diff_b": torch.ones(16)}
    save_lora(tensors | {"lora_unet_input_blocks_99_0_in_layers_0.w_norm": torch.ones(4)}, path)
    job = make_job(tiny_base, [path], prompts=["x"], strengths=[1], steps=1)
    _, events = run(job, tmp_path / "001", home)
    warnings = {values["code"]: values["message"] for event, values in events if event == "warning"}
    assert "'my_word'" in warnings["lora_embeddings"]
    assert "1 of the 2" in warnings["lora_partial"]


@pytest.mark.slow
def test_resume_after_a_stop_generates_only_the_missing_cells(
    done: tuple[SweepResult, Events, Path], tiny_base: Path, loras: list[Path], tmp_path: Path, home: Home
) -> None:
    job, folder = make_job(tiny_base, loras), tmp_path / "001"
    first, _ = run(job, folder, home, stop_after=4)
    assert first.stopped
    assert len(first.cells) == 4
    assert first.grid is not None
    kept = {cell.path: cell.path.stat().st_mtime_ns for cell in first.cells}
    second, events = run(job, folder, home, resume=True)
    assert not second.stopped
    assert [values["done"] for event, values in events if event == "cell"] == [5, 6, 7, 8, 9, 10]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for cell, uninterrupted in zip(second.cells, done[0].cells, strict=True):
        assert (pixels(cell.path) == pixels(uninterrupted.path)).all()


def test_stop_before_the_first_cell_leaves_no_grid(
    tiny_base: Path, loras: list[Path], tmp_path: Path, home: Home
) -> None:
    result, _ = run(make_job(tiny_base, loras), tmp_path / "001", home, stop_after=0)
    assert (result.stopped, result.grid, result.cells) == (True, None, [])


@pytest.mark.slow
def test_only_invalid_cells_are_generated_again(copied: Path, tiny_base: Path, loras: list[Path], home: Home) -> None:
    cells = sorted((copied / "cells").iterdir())
    cells[1].write_bytes(cells[1].read_bytes()[:200])
    cells[2].unlink()
    result, events = run(make_job(tiny_base, loras), copied, home, resume=True)
    drawn = {Path(values["path"]).name for event, values in events if event == "cell"}
    assert drawn == {cells[1].name, cells[2].name}
    assert len(result.cells) == 10
    assert not any(values.get("message") == "Loading ink" for _, values in events)
    _, events = run(make_job(tiny_base, loras, seed=10, strengths=[0]), copied, home, resume=True)
    assert sum(event == "cell" for event, _ in events) == 2


def test_seeds_are_an_axis_and_shared_cells_are_copied(
    done: tuple[SweepResult, Events, Path], tiny_base: Path, loras: list[Path], tmp_path: Path, home: Home
) -> None:
    project = tmp_path / "sweeps"
    shutil.copytree(done[2], project / "001")
    renamed = Path(shutil.copyfile(loras[1], tmp_path / "renamed.safetensors"))
    job = make_job(tiny_base, [renamed], strengths=[0, 1], prompts=["inkstamp_hc, face"], seed=None, seeds=[9, 10])
    result, events = run(job, project / "002", home)
    drawn = [values["seed"] for event, values in events if event == "cell"]
    assert drawn == [10, 10]
    assert [(cell.strength, cell.seed) for cell in result.cells] == [(0, 9), (0, 10), (1, 9), (1, 10)]
    originals = {(cell.lora and cell.lora.stem, cell.strength, cell.prompt): cell.path for cell in done[0].cells}
    for cell, original in zip(result.cells[::2], (None, "ink"), strict=True):
        assert (pixels(cell.path) == pixels(originals[original, cell.strength, "inkstamp_hc, face"])).all()
    assert "<lora:renamed:1>" in read_parameters(result.cells[2].path)
    assert (pixels(result.cells[0].path) != pixels(result.cells[1].path)).any()


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that loads a base."""

    def load(name: str, **given: Any) -> None:
        raise AssertionError(f"loaded {name}")

    monkeypatch.setattr(sweep_module, "load_sampling_pipeline", load)


@pytest.mark.usefixtures("never_loaded")
def test_the_base_is_not_loaded_if_all_cells_exist(
    done: tuple[SweepResult, Events, Path], tiny_base: Path, loras: list[Path], tmp_path: Path, home: Home
) -> None:
    project = tmp_path / "sweeps"
    own = Path(shutil.copytree(done[2], project / "001"))
    again, _ = run(make_job(tiny_base, loras), own, home, resume=True)
    assert [pixels(cell.path).sum() for cell in again.cells] == [pixels(cell.path).sum() for cell in done[0].cells]
    assert not again.stopped
    assert again.measures["rows"] == done[0].measures["rows"]
    shared, _ = run(make_job(tiny_base, loras[1:], strengths=[0, 1]), project / "002", home)
    assert [cell.strength for cell in shared.cells] == [0, 0, 1, 1]
    assert not shared.stopped
    assert shared.grid is not None
    for changes in ({"seed": 10}, {"strengths": [0, 0.7, 0.9]}, {"bases": [str(tiny_base), "embedded"]}):
        with pytest.raises(AssertionError, match="loaded"):
            run(make_job(tiny_base, loras, **changes), project / "003", home)
        shutil.rmtree(project / "003")


def test_cells_of_another_precision_than_the_loaded_base_has_are_drawn_again(
    done: tuple[SweepResult, Events, Path],
    tiny_base: Path,
    tmp_path: Path,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The facts read before loading are those of full precision; a GPU that is short of memory quantizes."""
    project = tmp_path / "sweeps"
    shutil.copytree(done[2], project / "001")
    original = sweep_module.load_sampling_pipeline

    def load(name: str, **given: Any) -> SamplingPipeline:
        return replace(original(name, **given), base_precision=BasePrecision.INT8)

    monkeypatch.setattr(sweep_module, "load_sampling_pipeline", load)
    job = make_job(tiny_base, [], prompts=["clock", "new"], steps=2)
    _, events = run(job, project / "002", home)
    assert [values["prompt"] for event, values in events if event == "cell"] == ["clock", "new"]


@pytest.mark.parametrize("sampler", ["euler", "euler_a"])
def test_small_cells_are_drawn_in_batches_which_become_smaller_without_memory(
    tiny_base: Path, loras: list[Path], tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    original, sizes = SamplingPipeline.generate_batch, []

    def limited(limit: int) -> Callable[..., Any]:
        def generate(self: SamplingPipeline, prompts: Any, *given: Any, **settings: Any) -> Any:
            sizes.append(len(prompts))
            if len(prompts) > limit:
                raise torch.OutOfMemoryError
            return original(self, prompts, *given, **settings)

        return generate

    values: dict[str, Any] = {"prompts": ["a", "b c", "c"], "strengths": [1], "seed": None, "seeds": [1, 2]}
    job = make_job(tiny_base, loras[1:], sampler=sampler, **values)
    results = []
    for limit, expected in ((4, [4, 2]), (2, [4, 2, 2, 2]), (1, [4, 2, *[1] * 6])):
        sizes.clear()
        monkeypatch.setattr(SamplingPipeline, "generate_batch", limited(limit))
        result, events = run(job, tmp_path / f"project {limit}" / "001", home)
        assert sizes == expected
        assert [values["done"] for event, values in events if event == "cell"] == [1, 2, 3, 4, 5, 6]
        results.append([pixels(cell.path).astype(int) for cell in result.cells])
    for batched, alone in zip([*results[0], *results[1]], [*results[2], *results[2]], strict=True):
        assert np.abs(batched - alone).max() <= 1
    monkeypatch.setattr(SamplingPipeline, "generate_batch", limited(0))
    with pytest.raises(torch.OutOfMemoryError):
        run(job, tmp_path / "none" / "001", home)


def test_stacked_loras_and_text_encoder_strengths_change_cells_and_are_written_into_them(
    tiny_base: Path, loras: list[Path], tmp_path: Path, home: Home
) -> None:
    values: dict[str, Any] = {"prompts": ["clock"], "strengths": [0, 1], "steps": 1}
    plain, _ = run(make_job(tiny_base, loras[:1], **values), tmp_path / "p" / "001", home)
    stack, _ = run(
        make_job(tiny_base, loras[:1], with_loras=[f"{loras[1]}:0.5"], **values), tmp_path / "p" / "002", home
    )
    apart, events = run(make_job(tiny_base, loras[:1], text_encoder_strength=0, **values), tmp_path / "p" / "003", home)
    images = [pixels(cell.path) for result in (plain, stack, apart) for cell in result.cells]
    assert (images[0] == images[4]).all()  # strength 0, copied
    assert [values["strength"] for event, values in events if event == "cell"] == [1]
    assert all((one != other).any() for one, other in combinations([*images[:4], images[5]], 2))
    texts = [read_parameters(result.cells[1].path).splitlines()[0] for result in (plain, stack, apart)]
    assert texts == [
        "clock <lora:ink-000001:1>",
        "clock <lora:ink-000001:1> <lora:ink:0.5>",
        "clock <lora:ink-000001:0:1>",
    ]
    assert read_parameters(stack.cells[0].path).splitlines()[0] == "clock <lora:ink:0.5>"


@pytest.mark.slow
def test_cells_with_other_settings_are_not_shared(
    done: tuple[SweepResult, Events, Path], tiny_base: Path, tmp_path: Path, home: Home
) -> None:
    project = tmp_path / "sweeps"
    shutil.copytree(done[2], project / "001")
    for changes in ({"steps": 1}, {"negative_prompt": "grey"}, {"clip_skip": 1}, {"guidance": 6.0}, {"width": 72}):
        _, events = run(make_job(tiny_base, [], prompts=["clock"], **changes), project / str(changes), home)
        assert sum(event == "cell" for event, _ in events) == 1, changes


@pytest.mark.slow
def test_two_bases_and_another_trigger_word(tiny_base: Path, loras: list[Path], tmp_path: Path, home: Home) -> None:
    from tests.support.tiny_sdxl import save_tiny_sdxl

    other = save_tiny_sdxl(tmp_path / "other", seed=5)
    job = make_job(
        tiny_base,
        loras[1:],
        bases=[str(tiny_base), str(other)],
        prompts=["{trigger}, a"],
        strengths=[0, 1],
        trigger_word="mine",
        width=96,
        height=64,
        negative_prompt="blurry, grey",
        steps=1,
    )
    result, _ = run(job, tmp_path / "001", home)
    assert [(cell.base, cell.strength, cell.prompt) for cell in result.cells] == [
        (str(base), strength, "mine, a") for base in (tiny_base, other) for strength in (0.0, 1.0)
    ]
    assert pixels(result.cells[0].path).shape == (64, 96, 3)
    assert (pixels(result.cells[0].path) != pixels(result.cells[2].path)).any()
    assert "\nNegative prompt: blurry, grey\n" in read_parameters(result.cells[0].path)


@pytest.mark.slow
def test_non_finite_image_is_skipped_with_a_warning(tiny_base: Path, tmp_path: Path, home: Home) -> None:
    pipeline = load_sampling_pipeline(str(tiny_base), home=home, precision=Precision.AUTO)
    tensors, _ = make_lora(pipeline.pipe, text_encoders=False)
    lora = save_lora({name: weight * 3e18 for name, weight in tensors.items()}, tmp_path / "loud.safetensors")
    result, events = run(make_job(tiny_base, [lora], prompts=["x"], strengths=[0, 1]), tmp_path / "001", home)
    assert [cell.strength for cell in result.cells] == [0.0]
    assert not result.stopped
    assert result.grid is not None
    warning = next(values for event, values in events if event == "warning")
    assert (warning["code"], "strength 1" in warning["message"]) == ("not_finite", True)


def test_all_tokens_of_a_long_prompt_and_its_weights_change_the_image(
    tiny_base: Path, tmp_path: Path, home: Home
) -> None:
    prompts = ["x" * 80, "x" * 79 + "y", "x" * 79 + "(y:0.3)"]
    result, events = run(make_job(tiny_base, [], prompts=prompts, steps=1), tmp_path / "001", home)
    images = [pixels(cell.path) for cell in result.cells]
    assert all((one != other).any() for one, other in combinations(images, 2))
    assert not any(event == "warning" for event, _ in events)
    assert read_parameters(result.cells[2].path).startswith(prompts[2])


def test_the_grid_is_drawn_if_memory_runs_out_while_it_is_measured(
    copied: Path, tiny_base: Path, loras: list[Path], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*given: Any) -> dict[str, float | None]:
        raise MemoryError

    monkeypatch.setattr(sweep_module, "measure", out_of_memory)
    (copied / "grid.png").unlink()
    result, events = run(make_job(tiny_base, loras), copied, home, resume=True)
    assert result.grid is not None
    assert result.grid.is_file()
    assert result.measures["rows"] == []
    assert [values["code"] for event, values in events if event == "warning"] == ["measures_out_of_memory"]


def test_bad_lora_is_refused_before_the_base_is_loaded(
    tiny_base: Path, loras: list[Path], tmp_path: Path, home: Home
) -> None:
    (tmp_path / "bad.safetensors").write_text("not a model")
    events: Callable[..., None] = pytest.fail
    job = make_job(tiny_base, [loras[0], tmp_path / "bad.safetensors"])
    folder = JobFolder.create(tmp_path / "001", job)
    with pytest.raises(InputError, match=r"bad\.safetensors"):
        sweep(job, folder, home=home, report=events, should_stop=lambda: False)


def test_without_loras_the_base_alone_is_drawn(tiny_base: Path, tmp_path: Path, home: Home) -> None:
    job = make_job(tiny_base, [], prompts=["{trigger}, face", "clock"], trigger_word="ink_hc", strengths=[1.0])
    result, _ = run(job, tmp_path / "sweep", home)
    assert [(cell.prompt, cell.strength, cell.lora) for cell in result.cells] == [
        ("ink_hc, face", 0.0, None),
        ("clock", 0.0, None),
    ]
    assert result.grid is not None
    [row] = result.measures["rows"]
    assert (row["lora"], row["strength"], row["change"]) == ("", 0.0, 0.0)
