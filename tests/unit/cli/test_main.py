"""The command line, run as a user runs it: a process, its two streams and its exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from lora_studio import api
from lora_studio.cli import main
from lora_studio.cli.main import app
from lora_studio.diagnosis import Check, Diagnosis
from lora_studio.settings.choices import Optimizer
from lora_studio.settings.job_specs import TrainJob, job_from_toml
from lora_studio.workspace.project import Home
from tests.support.tiny_taggers import save_tiny_wd

ROOT = Path(__file__).parents[3]
RESULT = {"automatic_stop": None, "stopped": False, "lora": Path("cat.safetensors"), "verdict": None}


def run(*words: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lora_studio", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def run_json(*words: str | Path) -> Any:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_plan_returns_the_documented_keys(home: Home) -> None:
    done = run("plan", "--images", "24", "--kind", "style", "--base", "Illustrious XL", "--vram", "12", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    expected = (
        "tier network_dim network_alpha unet_lr text_encoder_lr optimizer batch_size epochs repeats steps_per_epoch "
        "total_steps vram_gib seconds lora_mib warnings"
    )
    assert set(expected.split()) <= set(plan)
    assert plan["total_steps"] == plan["steps_per_epoch"] * plan["epochs"]
    assert all({"code", "message", "why"} <= set(warning) for warning in plan["warnings"])


def test_plan_shows_its_figures_over_one_variable(home: Home) -> None:
    words = ["plan", "--images", "24", "--vram", "12", "--home", str(home.path), "--what-if", "batch_size"]
    printed = CliRunner().invoke(app, words)
    assert printed.exit_code == 0, printed.output
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert found["what_if"]["variable"] == "batch_size"
    [own] = [row for row in found["what_if"]["rows"] if row["is_current"]]
    assert (own["value"], own["total_steps"]) == (found["batch_size"], found["total_steps"])
    for row in found["what_if"]["rows"]:
        assert f"{row['total_steps']:,}" in printed.stdout
    assert CliRunner().invoke(app, [*words[:-1], "seed"]).exit_code == 2


def test_plan_uses_the_given_settings(home: Home) -> None:
    plan = run_json("plan", "--images", "24", "--epochs", "3", "--batch", "4", "--repeats", "2")
    assert (plan["epochs"], plan["batch_size"], plan["repeats"]) == (3, 4, 2)
    assert plan["total_steps"] == 3 * 24 * 2 // 4


def test_plan_imports_and_exports_settings_of_kohyas_tools(tmp_path: Path, home: Home) -> None:
    source, target = tmp_path / "form.json", tmp_path / "plan.toml"
    form = {"LoRA_type": "Standard", "network_dim": 20, "unet_lr": 3e-4, "text_encoder_lr": 0, "color_aug": True}
    source.write_text(json.dumps(form))
    words = ["plan", "--images", "24", "--from", str(source), "--epochs", "3", "--export", str(target), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "color_aug" in done.stderr
    assert json.loads(done.stdout)["network_dim"] == 20
    written = tomllib.loads(target.read_text())
    assert (written["network_dim"], written["unet_lr"], written["max_train_epochs"]) == (20, 3e-4, 3)


def test_train_takes_imported_settings_under_those_that_are_given(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[TrainJob] = []
    monkeypatch.setattr(main, "_run", lambda job, home, out: jobs.append(job) or SimpleNamespace(**RESULT))
    source = tmp_path / "config.toml"
    source.write_text("network_dim = 20\nnetwork_alpha = 5\nunet_lr = 3e-4\noutput_name = 'cat'\n")
    words = ["train", "--from", str(source), "--dataset", str(tmp_path), "--base", "sdxl", "--set", "network_dim=12"]
    assert CliRunner().invoke(app, words).exit_code == 0
    recipe = jobs[0].recipe
    assert (jobs[0].name, recipe.network_dim, recipe.network_alpha, recipe.unet_lr) == ("cat", 12, 5, 3e-4)


def test_scan_counts_the_images_of_each_kind_and_names_them_on_request(image_folder: Callable[..., Path]) -> None:
    folder = image_folder(30, size=(640, 640))
    for index in range(12):
        path = folder / f"small {index}.png"
        Image.effect_noise((200, 200), 40 + index).save(path)
    short = CliRunner().invoke(app, ["scan", str(folder)])
    assert short.exit_code == 0
    assert re.search(r"^ *12 +too small$", short.stdout, re.MULTILINE)
    assert "small 3.png" not in short.stdout
    assert len(short.stdout.splitlines()) < 12
    assert "--names" in short.stdout
    named = CliRunner().invoke(app, ["scan", str(folder), "--names"])
    assert all(f"small {index}.png" in named.stdout for index in range(12))


@pytest.mark.slow
def test_curate_sets_a_duplicate_aside_and_restores_it(image_folder: Callable[..., Path], home: Home) -> None:
    folder = image_folder(4, size=(640, 640))
    copy = folder / "picture 1 again.png"
    copy.write_bytes((folder / "picture 1.png").read_bytes())
    report = run_json("scan", folder)
    assert len(report["images"]) == 5
    (group,) = report["duplicate_groups"]
    assert group["kind"] == "exact"
    assert {"keep", "reject", "kind", "distance"} <= set(group)
    assert {"path", "width", "height", "sha256", "issues"} <= set(report["images"][0])
    assert report["summary"]["duplicates"] == 1
    before = {path: path.read_bytes() for path in folder.iterdir()}

    shown = run("curate", folder)
    assert shown.returncode == 0
    assert {path: path.read_bytes() for path in folder.iterdir()} == before

    assert run("curate", folder, "--apply").returncode == 0
    assert len(list(folder.glob("*.png"))) == 4
    assert run("curate", folder, "--restore").returncode == 0
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_curate_wrap_moves_loose_images_into_a_set(image_folder: Callable[..., Path]) -> None:
    folder = image_folder(3, size=(640, 640))
    done = run("curate", folder, "--wrap", "saria")
    assert "3 images" in done.stderr
    assert len(list((folder / "10_saria").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["scan", "no such folder"], "no such folder"),
        (["plan"], "--images"),
        (["plan", "--images", "0"], "--images"),
        (["train", "--dataset", "."], "--base"),
        (["train", "nowhere.toml"], "nowhere.toml"),
        (["train", "--dataset", ".", "--base", "x", "--set", "unet_lr=abc"], "unet_lr"),
        (["train", "--dataset", ".", "--base", "x", "--set", "no_such=1"], "no_such"),
        (["sample", "nowhere"], "nowhere"),
        (["sweep", "missing.safetensors", "--base", "x", "--prompt", "p", "--strengths", "0,often"], "often"),
        (["curate", ".", "--apply", "--restore"], "exclude"),
        (["tag", "examples/inkstamp", "--tagger", "no such tagger"], "no such tagger"),
        (["tag", "examples/inkstamp", "--tagger", "wd14", "--threshold", "2"], "threshold"),
    ],
)
def test_wrong_input_exits_with_status_2_and_a_message_on_stderr(
    words: list[str],
    named: str,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["lora_studio", *words])
    with pytest.raises(SystemExit) as ended:
        main.main()
    done = capsys.readouterr()
    assert ended.value.code == 2
    assert named in done.err
    assert not done.out


def test_wrong_input_ends_the_process_with_status_2_and_without_a_traceback(home: Home) -> None:
    done = run("train", "--dataset", ".", "--base", "x", "--set", "unet_lr=abc")
    assert done.returncode == 2
    assert "unet_lr" in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


@pytest.mark.parametrize("works", [True, False])
def test_doctor_exits_with_status_1_if_something_needed_fails(
    home: Home, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    checked = Check(name="torch", works=works, message="2.13.0")
    report = Diagnosis(
        lora_studio="1", python="3", platform="x", pytorch={}, gpus=[], memory_gib=(1, 2), libraries=[checked], gpu=[],
        disk=[], devices=[],
    )  # fmt: skip
    monkeypatch.setattr(api, "doctor", lambda home: report)
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == (0 if works else 1)
    assert "2.13.0" in shown.stdout
    as_json = CliRunner().invoke(app, ["doctor", "--json"])
    assert as_json.exit_code == shown.exit_code
    assert json.loads(as_json.stdout)["ok"] is works


@pytest.mark.slow
def test_tag_command(image_folder: Callable[..., Path], tmp_path: Path, home: Home) -> None:
    folder, tagger = image_folder(3, captions=False), save_tiny_wd(tmp_path / "tagger")
    (folder / "broken.png").write_text("no image")
    (folder / "picture 0.txt").write_text("mine")
    options = ["tag", folder, "--tagger", tagger, "--threshold", "0.1", "--trigger", "ohwx"]
    result = run_json(*options)
    assert (result["tagged"], result["skipped"], result["stopped"]) == (2, 1, False)
    (failure,) = result["failed"]
    assert failure["path"] == str(folder / "broken.png")
    assert (folder / "picture 0.txt").read_text() == "mine"
    assert (folder / "picture 1.txt").read_text().startswith("ohwx, ")

    again = CliRunner().invoke(app, [str(word) for word in (*options, "--existing", "append")])
    assert again.exit_code == 0
    assert "1 tagged, 2 unchanged, 1 failed." in again.stdout
    assert "broken.png" in again.stdout
    assert (folder / "picture 0.txt").read_text().startswith("ohwx, mine, ")
    assert len(_events(home.path / "tags" / "002")) > 3

    other = save_tiny_wd(tmp_path / "other", family="convnext")
    more = ["--tagger", other, "--existing", "overwrite", "--character-threshold", "0.1", "--only", "hero_(series),red"]
    assert run_json(*options, *more)["tagged"] == 3
    assert sorted((folder / "picture 0.txt").read_text().split(", ")) == ["hero (series)", "ohwx", "red"]


def test_presets_are_listed_renamed_exported_and_imported(tmp_path: Path, home: Home) -> None:
    def presets(*words: str | Path) -> str:
        done = CliRunner().invoke(app, ["presets", "--home", str(home.path), *map(str, words)])
        assert done.exit_code == 0, done.output
        return done.stdout

    presets("export", "prodigy", tmp_path / "mine.toml")
    presets("import", tmp_path / "mine.toml")
    presets("rename", "mine", "better")
    presets("import", tmp_path / "mine.toml", "--name", "other")
    found = json.loads(presets("--json"))
    assert list(found)[:2] == ["better", "other"]
    assert found["better"] == found["other"] == found["prodigy"]
    assert "better: " in presets()
    assert CliRunner().invoke(app, ["presets", "--home", str(home.path), "rename", "mine", "x"]).exit_code != 0


def test_plan_takes_presets_and_settings_and_writes_a_job(
    image_folder: Callable[..., Path], tmp_path: Path, home: Home
) -> None:
    folder, file = image_folder(4), tmp_path / "job.toml"
    words = ("--preset", "prodigy", "--set", "network_dim=12", "--epochs", "7", "--trigger", "ink_x")
    planned = run_json("plan", folder, "--base", "embedded", *words, "--out", file)
    job = job_from_toml(file.read_text("utf-8"))
    assert isinstance(job, TrainJob)
    assert (job.dataset, job.base, job.trigger_word) == (folder, "embedded", "ink_x")
    assert job.recipe.non_defaults() == planned["recipe"]
    assert (job.recipe.optimizer, job.recipe.network_dim, job.recipe.epochs) == (Optimizer.PRODIGY, 12, 7)
    assert run("plan", "--images", "24", "--out", file).returncode == 2


@pytest.mark.slow
def test_plan_measures_the_time_of_a_step(
    image_folder: Callable[..., Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_STUDIO_HOME", str(tmp_path / "home"))
    settings = ("network_dim=4", "network_alpha=2", "resolution=64", "min_bucket_reso=64", "batch_size=2")
    words = ["plan", image_folder(4), "--base", tiny_base, *(word for text in settings for word in ("--set", text))]
    estimated, measured = run_json(*words), run_json(*words, "--measure")
    assert "measured" in measured["seconds_source"]
    assert "measured" not in estimated["seconds_source"]
    assert estimated["ram_gib"] is None
    assert 0.1 < measured["ram_gib"] < 16
    assert measured["vram_source"] == estimated["vram_source"] == "estimated"
    again = run_json(*words)
    assert (again["seconds"], again["ram_gib"]) == (measured["seconds"], measured["ram_gib"])
    assert [path.name for path in (tmp_path / "home").iterdir() if path.name.startswith("measure-")] == []
    assert run("plan", "--images", "24", "--measure").returncode == 2


@pytest.mark.slow
def test_train_and_sweep_commands(
    image_folder: Callable[..., Path], tiny_base: Path, tmp_path: Path, home: Home
) -> None:
    out = tmp_path / "run"
    settings = (
        "network_dim=4 network_alpha=2 resolution=64 min_bucket_reso=64 epochs=2 batch_size=2 sample_every_n_epochs=0 "
        "max_train_steps=3 repeats=1"
    )
    options = [word for text in settings.split() for word in ("--set", text)]
    trained = run_json(
        "train", "--dataset", image_folder(4), "--base", tiny_base, "--name", "tiny", "--out", out, *options
    )
    lora = Path(trained["lora"])
    assert lora == out / "tiny.safetensors"
    assert lora.is_file()
    assert trained["steps"] == 3
    losses = [event["loss"] for event in _events(out) if event["event"] == "step"]
    assert len(losses) == 3
    assert trained["final_loss"] == losses[-1]

    swept = run_json(
        "sweep",
        lora,
        "--base",
        tiny_base,
        "--prompt",
        "inkstamp_hc",
        "--strengths",
        "0,1",
        "--steps",
        "2",
        "--out",
        tmp_path / "sweep",
    )
    assert [cell["strength"] for cell in swept["cells"]] == [0, 1]
    assert Path(swept["grid"]).is_file()


def _events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
