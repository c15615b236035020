"""The report of `scan`: a table by kind with counts, and the names of the images on request."""

from __future__ import annotations

from collections import defaultdict

from rich.markup import escape
from rich.table import Table

from lora_studio.cli.console import out_console, print_lines
from lora_studio.dataset.duplicates.find import DuplicateKind
from lora_studio.dataset.scan import ScanReport

KIND_TEXTS = {
    "unreadable": "cannot be read",
    "wrong_extension": "another format than the file name says",
    "too_small": "too small",
    "extreme_aspect": "very wide or very tall",
    "animated": "animated: only the first frame is used",
    "alpha": "transparent",
    "deep_color": "more than 8 bits per channel",
    "cmyk": "CMYK colours",
    "blurred": "blurred",
    "dark": "dark",
    "bright": "overexposed",
    "compressed": "compression artefacts",
    "border": "border",
    "bar": "bar along an edge",
}
GROUP_TEXTS = {
    DuplicateKind.EXACT: "exact duplicate: set aside",
    DuplicateKind.NEAR: "near duplicate: set aside",
    DuplicateKind.SIMILAR: "similar: check",
}


def print_scan(report: ScanReport, *, with_names: bool) -> None:
    """Print what a scan found: how many images of each kind, then what is true of the whole folder."""
    found = _lines_by_kind(report)
    if found:
        table = Table(box=None, pad_edge=False)
        table.add_column("Images", justify="right")
        table.add_column("To check")
        for kind, lines in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
            table.add_row(str(len(lines)), escape(kind))
        out_console.print(table, highlight=False)
    if with_names:
        for kind, lines in found.items():
            print_lines("", f"{kind}:", *(f"    {line}" for line in lines))
    if report.diversity:
        print_lines(f"Diversity {report.diversity.figure} of 100: {report.diversity.words}.")
        pairs = report.diversity.pairs if with_names else []
        for pair in pairs:
            print_lines(f"    similarity {pair.likeness:.2f}: {pair.first.name} and {pair.second.name}")
    print_lines(*(issue.message for issue in report.summary.issues))
    flawed = sum(bool(image.issues) for image in report.images)
    hint = "" if with_names or not found else " --names lists them."
    print_lines(
        f"{len(report.images)} images, {report.summary.duplicates} duplicates, {flawed} with something to check.{hint}"
    )


def _lines_by_kind(report: ScanReport) -> dict[str, list[str]]:
    """Return a line per image and finding, by kind."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for group in report.duplicate_groups:
        found[GROUP_TEXTS[group.kind]] += [f"{path}: like {group.keep}" for path in group.reject]
    for image in report.images:
        for issue in image.issues:
            found[KIND_TEXTS.get(issue.code, issue.code)].append(f"{image.path}: {issue.message}")
    return dict(found)
