"""Judge the verdicts of tests on LoRAs that are known to be good or bad: `python tools/judge_measures.py`.

Reads the measures that `build_demo_pack.py collection` left in tests/data/loras and prints, as Markdown, how often each
kind gets a verdict that is right, and which others it gets.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lora_studio.sampling.picture_measures import StrengthPictures  # noqa: E402
from lora_studio.sampling.recommend import judge_lora, recommend_strength  # noqa: E402

DATA = ROOT / "tests" / "data" / "loras"
FEATURES = "demo"  # the embedded tagger, by which the collection is measured


@dataclass(frozen=True)
class Judged:
    """A LoRA of the collection with its verdict and recommended strength; `fine` is that of a finer test."""

    style: str
    kind: str
    right: tuple[str, ...]
    code: str
    strength: float | None
    fine: float | None

    @property
    def is_right(self) -> bool:
        """True for a verdict that fits how the LoRA was trained."""
        return self.code in self.right


def judge_collection(folder: Path = DATA) -> Iterator[Judged]:
    """Yield the judged LoRAs of a collection, by style and kind."""
    for file in sorted(folder.glob("*/*/pictures.json")):
        run = json.loads((file.parent / "run.json").read_text("utf-8"))
        rows, fine = read_rows(file), read_rows(file.with_name("fine.json"))
        strengths = (recommend_strength(found, FEATURES).strength for found in (rows, fine))
        yield Judged(run["style"], run["kind"], tuple(run["verdicts"]), judge_lora(rows, FEATURES).code, *strengths)


def read_rows(file: Path) -> list[StrengthPictures]:
    """Read measures by strength; none if the file does not exist."""
    rows = json.loads(file.read_text("utf-8")) if file.exists() else []
    return [StrengthPictures.model_validate(row) for row in rows]


def table(found: list[Judged]) -> str:
    """Return a row per kind: the right verdicts, how often they were given, the others, the recommended strengths.

    The strength of the finer test is in brackets.
    """
    lines = ["| kind | right verdict | given | instead | recommended strength (finer test) |", "|---|---|---|---|---|"]
    for kind in dict.fromkeys(one.kind for one in found):
        own = [one for one in found if one.kind == kind]
        others = Counter(one.code for one in own if not one.is_right)
        instead = ", ".join(f"{code} {count}" for code, count in others.most_common())
        strengths = ", ".join(strength_text(one) for one in own)
        right = sum(one.is_right for one in own)
        lines.append(f"| {kind} | {' or '.join(own[0].right)} | {right} of {len(own)} | {instead} | {strengths} |")
    return "\n".join(lines)


def strength_text(one: Judged) -> str:
    """Return the recommended strength like "0.8 (0.85)"."""
    text = "none" if one.strength is None else f"{one.strength:g}"
    return text if one.fine is None else f"{text} ({one.fine:g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--style", help="only LoRAs of this style")
    given = parser.parse_args()
    found = [one for one in judge_collection(given.data) if given.style in (None, one.style)]
    if not found:
        raise SystemExit(f"{given.data} has no LoRA: run build_demo_pack.py collection first")
    print(table(found))
    print(f"\n{sum(one.is_right for one in found)} of {len(found)} verdicts are right.")


if __name__ == "__main__":
    main()
