from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_studio.lora.header import LoraFile
from lora_studio.sampling.cells import Arrangement, SweepPlan
from lora_studio.settings.choices import SweepAxis
from lora_studio.settings.job_specs import SweepJob


def make_plan(loras: int = 1, **changes: Any) -> SweepPlan:
    paths = [Path(f"{number}/ink-{number}.safetensors") for number in range(loras)]
    values = {"loras": paths, "bases": ["a"], "prompts": ["{trigger}, face", "clock"], "strengths": [1, 0]}
    headers = [
        LoraFile(path, {"modelspec.trigger_phrase": f"word{number}"}, {}, 0) for number, path in enumerate(paths)
    ]
    return SweepPlan(SweepJob.parse(values | changes), headers)


def test_every_page_together_has_every_cell() -> None:
    plan = make_plan(2, bases=["a", "b"], seeds=[5, 6, 7])
    keys = {key for page in plan.pages() for row in plan.table(page) for key in row}
    assert keys == set(plan.cells)
    assert len({plan.path(key) for key in plan.cells}) == len(plan.cells) == 2 * 3 * (3 + 2 * 2)
    assert [plan.page_label(page) for page in plan.pages()][:2] == ["a · ink-0 · seed 5", "a · ink-0 · seed 6"]


def test_default_rows_and_columns_are_axes_with_several_values() -> None:
    shown = make_plan().arrangement
    assert (shown.rows, shown.columns) == (SweepAxis.PROMPT, SweepAxis.STRENGTH)
    shown = make_plan(prompts=["a"], seeds=[1, 2]).arrangement
    assert (shown.rows, shown.columns) == (SweepAxis.SEED, SweepAxis.STRENGTH)
    shown = make_plan(3, prompts=["a"], strengths=[1]).arrangement
    assert shown.columns is SweepAxis.LORA
    shown = make_plan(rows="strength").arrangement
    assert (shown.rows, shown.columns) == (SweepAxis.STRENGTH, SweepAxis.PROMPT)


def test_a_table_varies_its_two_axes_and_nothing_else() -> None:
    plan = make_plan(2, seeds=[5, 6])
    page = Arrangement(SweepAxis.LORA, SweepAxis.SEED, {SweepAxis.STRENGTH: 1, SweepAxis.PROMPT: 0})
    cells = [[(key.lora, key.seed, key.strength, key.prompt) for key in row] for row in plan.table(page)]
    assert cells == [[(n, seed, 1.0, f"word{n - 1}, face") for seed in (5, 6)] for n in (1, 2)]
    base_alone = Arrangement(SweepAxis.PROMPT, SweepAxis.STRENGTH, {SweepAxis.LORA: 1})
    assert [row[0].lora for row in plan.table(base_alone)] == [0, 0]


def test_the_first_seed_keeps_the_names_of_a_sweep_with_one_seed() -> None:
    one, two = make_plan(seeds=[5]), make_plan(seeds=[5, 6])
    assert {one.path(key) for key in one.cells} < {two.path(key) for key in two.cells}


def test_close_strengths_have_files_of_their_own() -> None:
    plan = make_plan(strengths=[0.7, 0.70000001])
    assert len({plan.path(key) for key in plan.cells}) == 4


def test_each_base_gets_its_own_quality_tags_and_negative_prompt() -> None:
    bases = ["Pony V6 XL", "Animagine XL", "own.safetensors"]
    plan = make_plan(bases=bases, prompts=["{trigger}, face"], quality_tags=True, negative_prompt="auto")
    pony, animagine, own = (plan.prompts(base, 1)[0] for base in bases)
    assert pony.startswith("score_9, ")
    assert pony.endswith("word0, face")
    assert animagine == "word0, face, masterpiece, high score, great score, absurdres"
    assert own == "word0, face"
    assert [plan.negative_prompt(base).split(",")[0] for base in bases] == ["score_6", "worst quality", ""]
    assert plan.labels(SweepAxis.PROMPT) == ["word0, face"]
    already = make_plan(bases=bases[:1], prompts=["score_9, cat"], quality_tags=True)
    assert already.prompts(bases[0], 1) == ["score_9, cat"]


def test_a_page_shows_the_strength_nearest_to_1_first() -> None:
    plan = make_plan(2, prompts=["a"], columns="lora", strengths=[0, 0.8, 1.1], seeds=[1, 2])
    shown = plan.arrangement
    assert plan.page_axes(shown) == [SweepAxis.STRENGTH]
    assert {key.strength for row in plan.table(shown) for key in row} == {1.1}
