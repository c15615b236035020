"""A run of a LoRA tool as cards, tables and bars."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from lora_studio.errors import JobError
from lora_studio.lora.tools.reports import ConvertReport, InspectReport, TruncationReport
from lora_studio.plurals import format_count
from lora_studio.ui.widgets.html import TableRow, Tile, Tone, card, cards, error_card, note, render, table, tiles
from lora_studio.workspace.tool_run import Tool, ToolRun, ToolState

TITLES = {
    Tool.INSPECT: "Reading",
    Tool.RESIZE: "Resizing",
    Tool.MERGE: "Merging",
    Tool.CONVERT: "Converting",
    Tool.EXTRACT: "Extracting",
    Tool.METADATA: "Writing",
    Tool.STRIP: "Writing",
}
WORST_LAYERS = 8
MIB = 1024**2


def tool_run(run: ToolRun) -> Markup:
    """Return the progress, the error or the result of a run."""
    if run.state is ToolState.RUNNING:
        percent = 100 * run.done / run.total if run.total else 0
        count = f"{run.done} of {run.total} layers" if run.total else "starting"
        return render("sweep/tool_progress.html", title=TITLES[run.tool], count=count, percent=percent)
    if run.state is ToolState.FAILED:
        return error_card(JobError(run.message, run.remedy, code=run.code))
    match run.tool:
        case Tool.INSPECT:
            return _inspected(InspectReport.model_validate(run.result))
        case Tool.RESIZE | Tool.MERGE | Tool.EXTRACT:
            return _truncated(TruncationReport.model_validate(run.result))
        case Tool.CONVERT:
            report = ConvertReport.model_validate(run.result)
            left_out = f" Without the embeddings {', '.join(report.left_out)}." if report.left_out else ""
            return _written(report.out, f"{format_count(report.layers, 'layer')} in {report.naming} naming.{left_out}")
        case _:
            metadata = run.result.get("metadata", {})
            return _written(Path(run.arguments["out"]), "The tensors are the same.") + _entries(metadata)


def _written(out: Path, text: str) -> Markup:
    return card(f"Written: {out.name}", text, "It is in the list of LoRAs now.", Tone.OK)


def _truncated(report: TruncationReport) -> Markup:
    """Return the file, its size and its error, and the layers with the largest errors."""
    ranks = sorted({layer.rank for layer in report.layers})
    rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    shown = tiles(
        [
            Tile("Relative error", f"{report.error:.2%}", "of the norm of all changes"),
            Tile("Rank", rank, format_count(len(report.layers), "layer")),
            Tile("Size", f"{report.bytes / MIB:.1f} MiB", f"before: {report.bytes_before / MIB:.1f} MiB"),
        ]
    )
    worst = table(
        ["Error", "Rank", "Layer"],
        [
            TableRow([f"{layer.error:.2%}", f"{layer.rank_before} → {layer.rank}", layer.layer])
            for layer in report.layers[:WORST_LAYERS]
        ],
        ["keep", "keep", "why"],
        label="Layers with the largest errors",
    )
    missing = cards(note(f"Left out: {text}.", tone=Tone.WARNING) for text in report.left_out)
    return _written(report.out, "") + shown + missing + (worst if report.error else Markup(""))


def _inspected(report: InspectReport) -> Markup:
    """Return what a file is, with its ranks, metadata, tags and norms."""
    largest = max((row.norm for row in report.norms), default=0.0)
    facts = [
        ("Size", f"{report.bytes / MIB:.1f} MiB, {report.parameters:,} parameters"),
        ("Precision", ", ".join(report.dtypes)),
        ("Network", ", ".join(f"{name} ({count})" for name, count in report.networks.items())),
        *((part.model, f"{part.layers} layers, {_ranks(part.ranks, part.alphas)}") for part in report.parts),
        *((_label(name), value) for name, value in (report.fields | report.training).items()),
        ("Embeddings", ", ".join(report.embeddings)),
    ]
    bars = [(row.block, f"{row.norm:.3g}", 100 * row.norm / largest if largest else 0) for row in report.norms]
    return render(
        "sweep/inspected.html",
        title=f"{report.path.name}: {report.kind}",
        problem=report.problem,
        facts=[(name, value) for name, value in facts if value],
        bars=bars,
        tags=list(report.tags.items()),
    )


def _label(key: str) -> str:
    """Return the name of an entry of the metadata as text: "ss_unet_lr" is "Unet lr"."""
    return key.removeprefix("ss_").removeprefix("modelspec.").replace("_", " ").capitalize()


def _ranks(ranks: dict[int, int], alphas: dict[str, int]) -> str:
    rank = ", ".join(str(value) if value else "full" for value in sorted(ranks)) or "–"
    return f"rank {rank}, alpha {', '.join(alphas) or '–'}"


def _entries(metadata: dict[str, str]) -> Markup:
    rows = [TableRow([key, str(value)[:200]]) for key, value in sorted(metadata.items())]
    return table(["Entry", "Value"], rows, label="Metadata") if rows else Markup("")
