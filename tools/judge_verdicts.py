"""Count how often each verdict is right and wrong: `python tools/judge_verdicts.py [--runs N] [--tune]`.

Simulated runs have the noise that real ones have, at the lengths that the studio plans; the real ones are those of
tests/data/verdict_runs. Each is judged after each fixed-noise loss. Writes docs/verdicts.md. The
limits (lora_studio/planning/verdict_limits.py) are chosen with --tune, which prints the same counts for other curves
and seeds than those of the page.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "verdicts.md"
TEMPLATE = ROOT / "tools" / "verdicts_page.md"
DATA = ROOT / "tests" / "data" / "verdict_runs"
sys.path.insert(0, str(ROOT))

from lora_studio.planning.evaluations import plan_evaluations  # noqa: E402
from lora_studio.planning.loss_record import LossRecord  # noqa: E402
from lora_studio.planning.loss_signs import find_sign  # noqa: E402

Level = Callable[[NDArray[np.float64]], NDArray[np.float64]]
# What a step of batch 8 varies by once its timesteps are divided out, relative to its mean (measured: 0.11 to 0.15).
NOISE = 0.14
# The fixed-noise loss varies between evaluations, since the weights do: in proportion to what they have changed.
# Standard deviation relative to the fall of the training loss (measured: 0.8% to 1.2% in five real runs on training
# images, 2.2% on the four images of a validation split).
FIXED_NOISE, VALIDATION_NOISE = 0.015, 0.025
IN_TIME = 0.15  # of the run, within which a sign should be named
SEED = 20_261_128  # another one than the limits were chosen with; change it for a table on fresh runs
QUIET = {"healthy", "unclear", "too_short"}


@dataclass(frozen=True)
class Length:
    """A planned run: its batch size, steps and epochs."""

    name: str
    batch: int
    steps: int
    epochs: int


LENGTHS = (
    Length("batch 8, 500 steps, 20 epochs", 8, 500, 20),
    Length("batch 4, 312 steps, 6 epochs", 4, 312, 6),
    Length("batch 2, 1,040 steps, 13 epochs", 2, 1040, 13),
    Length("batch 1, 2,080 steps, 13 epochs", 1, 2080, 13),
)


@dataclass(frozen=True)
class Case:
    """A curve whose verdict is known: `level` over the run's share 0 to 1, relative to the base.

    From `since` on one of `codes` is right; before, only quiet verdicts are, and those of `early` from `early_since`
    on. No `codes`: a sign would be a false alarm. `validation` is the level of the validation split, if there is one,
    `nan_since` where every second step begins to have no finite loss.
    """

    name: str
    level: Level
    codes: frozenset[str] = frozenset()
    since: float = 0.0
    early: frozenset[str] = frozenset()
    early_since: float = 0.0
    validation: Level | None = None
    nan_since: float | None = None


def settling(fall: float, tau: float) -> Level:
    return lambda t: 1 - fall * (1 - np.exp(-t / tau))


def linear(fall: float) -> Level:
    return lambda t: 1 - fall * t


def rising(fall: float, rise: float, turn: float) -> Level:
    return lambda t: np.where(t < turn, 1 - fall * t / turn, 1 - fall + rise * (t - turn) / (1 - turn))


def jumping(fall: float, factor: float, at: float) -> Level:
    before = settling(fall, 0.3)
    return lambda t: before(t) * np.where(t < at, 1.0, factor)


def cases(*, tune: bool) -> Iterator[Case]:
    """Yield the curves to tune on, or those to report."""
    falls = (0.15, 0.3) if tune else (0.1, 0.2, 0.35)
    plateau = frozenset({"plateau"})
    for fall in falls:
        yield Case(f"falls by {fall:.0%}, steadily", linear(fall))
        late = settling(fall, 0.3)
        yield Case(f"falls by {fall:.0%}, slower and slower", late, early=plateau, early_since=0.48)
        for tau in (0.03, 0.06) if tune else (0.025, 0.05):
            name = f"falls by {fall:.0%}, level from {3 * tau:.0%} of the run"
            yield Case(name, settling(fall, tau), plateau, 3 * tau, plateau, 1.6 * tau)
    for fall in (0.0, 0.015) if tune else (0.0, 0.01, 0.02):
        name = f"falls by {fall:.0%} in all" if fall else "does not fall"
        yield Case(name, linear(fall), frozenset({"no_improvement"}))
    level = settling(0.4 if tune else 0.45, 0.3)
    yield Case(f"falls by {0.4 if tune else 0.45:.0%}, slower and slower", level, early=plateau, early_since=0.48)
    memorised = frozenset({"memorising"})
    for fall, half in ((0.65, 0.441),) if tune else ((0.6, 0.538), (0.7, 0.376)):
        name = f"falls by {fall:.0%}, slower and slower: half at {half:.0%}"
        yield Case(name, settling(fall, 0.3), memorised, half, plateau, 0.48)
    sign = frozenset({"rising", "broken"})
    for rise, turn in ((0.12, 0.4), (0.2, 0.6)) if tune else ((0.15, 0.5), (0.15, 0.3), (0.3, 0.6)):
        level = rising(0.1, rise, turn)
        yield Case(f"rises by {rise:.0%} from {turn:.0%} on", level, sign, turn, plateau, turn)
    for factor, at in ((1.4, 0.3), (2.5, 0.15), (4.0, 0.5)) if tune else ((1.3, 0.2), (1.3, 0.6), (2.0, 0.05)):
        codes = sign if factor < 1.5 else frozenset({"broken"})
        yield Case(f"jumps to {factor:g} times at {at:.0%}", jumping(0.2, factor, at), codes, at, sign | plateau, 0.0)
    for factor, at in () if tune else ((3.0, 0.1), (3.0, 0.8), (5.0, 0.3)):
        broken = frozenset({"broken"})
        yield Case(f"jumps to {factor:g} times at {at:.0%}", jumping(0.2, factor, at), broken, at, sign | plateau, 0.0)
    for turn in (0.3,) if tune else (0.4, 0.2):
        unseen = rising(0.05, 0.15, turn)
        since = turn + 0.03 * 0.95 * (1 - turn) / 0.15
        yield Case(
            f"validation loss rises from {turn:.0%} on",
            settling(0.3, 0.3),
            frozenset({"overfit"}),
            since,
            plateau,
            0.2,
            validation=unseen,
        )
    for fall, tau in ((0.15, 0.1), (0.02, 0.1)) if tune else ((0.1, 0.15), (0.0, 0.1)):
        name = f"falls by 30%, validation loss by {fall:.0%} and then level"
        level = settling(0.3, 0.3)
        yield Case(name, level, early=plateau, early_since=1.6 * tau, validation=settling(fall, tau))
    yield Case("every second step NaN from 30% on", settling(0.2, 0.3), frozenset({"nan"}), 0.3, nan_since=0.3)


def simulate(case: Case, length: Length, seed: Sequence[int]) -> LossRecord:
    """Return the losses of a run."""
    random = np.random.default_rng(seed)
    share = np.arange(1, length.steps + 1) / length.steps
    order = length.batch / 8 / NOISE**2
    relative = case.level(share) * random.gamma(order, 1 / order, length.steps)
    losses: list[float | None] = relative.tolist()
    if case.nan_since is not None:
        begin = round(case.nan_since * length.steps)
        losses[begin::2] = [None] * len(losses[begin::2])
    ends = np.array(evaluated_steps(length))
    level = case.validation or case.level
    noise = (VALIDATION_NOISE if case.validation else FIXED_NOISE) * random.standard_normal(len(ends))
    noise[0] = 0
    fixed = level(ends / length.steps) + noise * np.abs(1 - case.level(ends / length.steps))
    return LossRecord(
        losses,
        losses,
        dict(zip(ends.tolist(), fixed.tolist(), strict=True)),
        1.0,
        validates=case.validation is not None,
        total=length.steps,
    )


def evaluated_steps(length: Length) -> list[int]:
    """Return the steps after which a run of this length computes its fixed-noise loss."""
    planned = plan_evaluations(length.steps * length.batch, length.epochs)
    per_epoch = length.steps // length.epochs
    within = [step for step in range(1, length.steps) if planned.due_within_epoch(step, per_epoch)]
    ends = [epoch * per_epoch for epoch in range(length.epochs) if planned.due_after_epoch(epoch, length.epochs)]
    return sorted({0, length.steps, *within, *ends})


def codes_by_step(record: LossRecord) -> dict[int, str]:
    """Return the verdict's code after each fixed-noise loss."""
    return {step: find_sign(record.up_to(step)).code for step in record.fixed if step}


def judge(case: Case, length: Length, seed: Sequence[int]) -> tuple[bool, set[str]]:
    """Return whether a run's sign is named in time, and the codes of false alarms."""
    found = codes_by_step(simulate(case, length, seed))
    shares = {step: step / length.steps for step in found}
    due = min(1.0, case.since + IN_TIME)
    last = next((share for share in shares.values() if share >= due - 1e-9), 1.0)
    named = any(code in case.codes for step, code in found.items() if case.since <= shares[step] <= last + 1e-9)
    alarms = set()
    for step, code in found.items():
        right = code in QUIET or (code in case.codes and shares[step] >= case.since)
        if not right and not (code in case.early and shares[step] >= case.early_since):
            alarms.add(code)
    return named, alarms


def simulated_tables(runs: int, *, tune: bool) -> list[str]:
    """Return the table of what is named in time, and that of false alarms by code."""
    found: dict[str, list[str]] = {}
    in_time: dict[str, list[float]] = defaultdict(list)
    alarms: dict[str, Counter[str]] = defaultdict(Counter)
    totals: Counter[str] = Counter()
    for place, case in enumerate(cases(tune=tune)):
        row = []
        for number, length in enumerate(LENGTHS):
            named = 0
            for run in range(runs):
                hit, wrong = judge(case, length, (SEED, tune, place, number, run))
                named += hit
                alarms[length.name].update(wrong)
                totals[length.name] += 1
            row.append(f"{named / runs:.0%}" if case.codes else "–")
            in_time[", ".join(sorted(case.codes))].append(named / runs)
        found[case.name] = [", ".join(sorted(case.codes)) or "none", *row]
        print(case.name, *found[case.name], {name: dict(counts) for name, counts in alarms.items()}, sep=" | ")
    lines = ["| loss of a run | verdict | " + " | ".join(length.name for length in LENGTHS) + " |"]
    lines.append("|---" * (2 + len(LENGTHS)) + "|")
    lines += [f"| {name} | {' | '.join(row)} |" for name, row in found.items()]
    means = (
        f"{codes} {sum(shares) / len(shares):.0%} (least {min(shares):.0%})"
        for codes, shares in in_time.items()
        if codes
    )
    lines += ["", f"In time over all curves and lengths: {'; '.join(means)}."]
    codes = ("plateau", "no_improvement", "rising", "broken", "overfit", "memorising", "nan")
    lines += ["", "| false alarm | " + " | ".join(length.name for length in LENGTHS) + " |"]
    lines.append("|---" * (1 + len(LENGTHS)) + "|")
    for code in codes:
        shares = [f"{alarms[length.name][code] / totals[length.name]:.1%}" for length in LENGTHS]
        lines.append(f"| {code} | {' | '.join(shares)} |")
    return lines


def real_table() -> list[str]:
    """Return the table of the real runs: their noise, and their verdict after each fixed-noise loss."""
    lines = [
        "| run | verdicts, each with the step of its first | noise of a step, raw | relative |",
        "|---|---|---|---|",
    ]
    for file in sorted(DATA.glob("*.json")):
        run = json.loads(file.read_text("utf-8"))
        record = record_of(run)
        codes: list[tuple[int, str]] = []
        for step in sorted({*record.fixed, len(record.losses)} - {0}):
            code = find_sign(record.up_to(step)).code
            if not codes or codes[-1][1] != code:
                codes.append((step, code))
        named = ", ".join(f"{code} {step}" for step, code in codes)
        noise = [variation(curve) for curve in (record.losses, record.relative)]
        lines.append(f"| {describe(run)} | {named} | {noise[0]:.0%} | {noise[1]:.0%} |")
    return lines


def record_of(run: dict[str, Any]) -> LossRecord:
    """Return the losses of a file of `tools/train_verdict_runs.py`."""
    return LossRecord(
        run["losses"],
        run["relative_losses"],
        {int(step): loss for step, loss in run["fixed_losses"].items()},
        run["fixed_base"],
        validates=run["split"] == "validation",
        total=run["total"],
    )


def describe(run: dict[str, Any]) -> str:
    """Return how a run was made."""
    changes = ", ".join(f"{name} {value}" for name, value in run["changes"].items())
    return f"{run['run']}: {changes or 'unchanged'}, {run['total']} steps"


def variation(losses: Any) -> float:
    """Return the coefficient of variation of a step, from the differences of successive steps."""
    values = np.array([loss for loss in losses if loss is not None])
    return float(np.sqrt((np.diff(values) ** 2).mean() / 2) / values.mean())


def page(simulated: list[str], runs: int) -> str:
    """Return docs/verdicts.md."""
    return TEMPLATE.read_text("utf-8").format(
        real="\n".join(real_table()),
        runs=runs,
        seed=SEED,
        noise=f"{NOISE:.0%}",
        fixed=f"{FIXED_NOISE:.1%}",
        validation=f"{VALIDATION_NOISE:.1%}",
        in_time=f"{IN_TIME:.0%}",
        simulated="\n".join(simulated),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="simulated runs per curve and length")
    parser.add_argument("--tune", action="store_true", help="the curves to choose limits on; writes no page")
    options = parser.parse_args()
    tables = simulated_tables(options.runs, tune=options.tune)
    if not options.tune:
        PAGE.write_text(page(tables, options.runs), "utf-8")


if __name__ == "__main__":
    main()
