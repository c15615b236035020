"""`python -m lora_studio lora ...`: inspect, resize, merge, convert and extract LoRAs, and edit their metadata."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_studio.cli.console import HomeOption, Json, err_console, print_json, print_lines
from lora_studio.cli.progress import progress_bar
from lora_studio.errors import InputError
from lora_studio.workspace.project import Home

if TYPE_CHECKING:
    from lora_studio.lora.tools.reports import InspectReport, TruncationReport

WORST_LAYERS = 5
MIB = 1024**2
BAR = 40  # characters of the longest bar of a block's norm

lora_app = typer.Typer(
    help="Inspect, resize, merge, convert and extract LoRA files; no file is overwritten.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors file.")]
Out = Annotated[Path, typer.Option("--out", help="The new .safetensors file; it must not exist.")]
Rank = Annotated[int | None, typer.Option("--rank", help="The largest rank of a layer.")]
Keep = Annotated[
    float | None,
    typer.Option("--keep", help="Share of each layer's norm to keep, like 0.95; fewest ranks."),
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, float16 or bfloat16 (default: the file's).")]


@lora_app.command("inspect")
def inspect_command(file: File, as_json: Json = False) -> None:
    """Describe any .safetensors file: kind, networks, ranks, metadata, tags, and the norm of each block."""
    from lora_studio.lora.tools.inspect import inspect_file

    with progress_bar(err_console, "Reading") as progress:
        report = inspect_file(file, on_progress=progress)
    if as_json:
        print_json(report)
    else:
        print_lines(*_inspect_lines(report))


@lora_app.command("resize")
def resize_command(
    file: File, out: Out, rank: Rank = None, keep: Keep = None, dtype: Dtype = None, as_json: Json = False
) -> None:
    """Write a LoRA at a smaller rank by SVD; LoHa, LoKr and full differences become LoRAs."""
    from lora_studio.lora.tools.resize import resize_lora

    with progress_bar(err_console, "Resizing") as progress:
        report = resize_lora(file, out, rank=rank, keep=keep, dtype=dtype, on_progress=progress)
    _print_truncation(report, as_json)


@lora_app.command("merge")
def merge_command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Two or more LoRAs.")],
    out: Out,
    weight: Annotated[
        list[float] | None, typer.Option("--weight", help="One per file, in their order (default: 1). Can be repeated.")
    ] = None,
    rank: Rank = None,
    keep: Keep = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Write the weighted sum of LoRAs: exact without --rank and --keep, since their ranks are concatenated."""
    from lora_studio.lora.tools.merge import merge_loras

    with progress_bar(err_console, "Merging") as progress:
        report = merge_loras(files, out, weights=weight, rank=rank, keep=keep, dtype=dtype, on_progress=progress)
    _print_truncation(report, as_json)


@lora_app.command("convert")
def convert_command(
    file: File,
    out: Out,
    to: Annotated[str, typer.Option("--to", help="kohya or diffusers, whose names peft reads, too.")],
    as_json: Json = False,
) -> None:
    """Rename a LoRA's tensors for other programs; the weights stay the same."""
    from lora_studio.lora.tools.convert import convert_lora
    from lora_studio.lora.tools.reports import Naming

    if to not in list(Naming):
        raise InputError(f"--to is {to!r}.", f"Give one of {', '.join(Naming)}.", code="naming")
    with progress_bar(err_console, "Converting") as progress:
        report = convert_lora(file, out, to, on_progress=progress)
    if as_json:
        print_json(report)
        return
    print_lines(f"{report.out}: {report.layers} layers in {report.naming} naming")
    print_lines(*(f"Left out: the embedding {word}" for word in report.left_out))


@lora_app.command("extract")
def extract_command(
    finetuned: Annotated[str, typer.Argument(metavar="FINETUNED", help="A finetuned SDXL checkpoint.")],
    base: Annotated[str, typer.Option("--base", help="The checkpoint that it was finetuned from.")],
    out: Out,
    rank: Rank = None,
    keep: Keep = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, float16 or bfloat16.")] = "float16",
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Write the difference of two SDXL checkpoints as a LoRA; they are read one tensor at a time."""
    from lora_studio.lora.tools.extract import extract_lora

    with progress_bar(err_console, "Extracting") as progress:
        report = extract_lora(
            finetuned,
            out,
            base=base,
            rank=rank,
            keep=keep,
            dtype=dtype,
            home=Home.locate(home),
            on_progress=progress,
        )
    _print_truncation(report, as_json)


@lora_app.command("metadata")
def metadata_command(
    file: File,
    out: Annotated[Path | None, typer.Option("--out", help="The new .safetensors file; it must not exist.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="FIELD=VALUE: title, author, license, description, trigger, tags or a whole key; empty removes it. "
            "Can be repeated.",
        ),
    ] = None,
    strip: Annotated[bool, typer.Option("--strip", help="Remove all that loading does not need, like tags.")] = False,
    as_json: Json = False,
) -> None:
    """Show the metadata, or write a copy with other metadata."""
    from lora_studio.lora.tools.metadata import edit_metadata, read_metadata, strip_metadata

    if strip and change:
        raise InputError("--strip and --set exclude each other.", "Strip first, then set.", code="usage")
    if (strip or change) and out is None:
        raise InputError("--out is missing.", "Give a new file: the original is kept as it is.", code="usage")
    if out is None:
        metadata = read_metadata(file)
    elif strip:
        metadata = strip_metadata(file, out)
    else:
        metadata = edit_metadata(file, out, _changes(change or []))
    if as_json:
        print_json(metadata)
    else:
        print_lines(*(f"{key}: {value}" for key, value in sorted(metadata.items())))


@lora_app.command("run", hidden=True)
def run_command(file: Annotated[Path, typer.Argument(metavar="TOOL.json")], home: HomeOption = None) -> None:
    """Run the tool that a file describes and write its progress and result there; the studio starts this."""
    from lora_studio.lora.tools.run import run_tool

    raise typer.Exit(0 if run_tool(file, Home.locate(home)) else 1)


def _changes(given: list[str]) -> dict[str, str]:
    changes = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set is {text!r}.", "Give FIELD=VALUE, like title=Ink.", code="usage")
        changes[name.strip()] = value
    return changes


def _print_truncation(report: TruncationReport, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    ranks = sorted({layer.rank for layer in report.layers})
    text = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    print_lines(
        f"{report.out}: {len(report.layers)} layers, {text}, {report.bytes / MIB:.2f} MiB "
        f"(before: {report.bytes_before / MIB:.2f} MiB)",
        f"Relative error: {report.error:.3%}",
    )
    if report.error:
        worst = report.layers[:WORST_LAYERS]
        print_lines(*(f"    {layer.error:.3%}  rank {layer.rank:<4} {layer.layer}" for layer in worst))
    print_lines(*(f"Left out: {text}" for text in report.left_out))


def _inspect_lines(report: InspectReport) -> list[str]:
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in report.dtypes.items())
    lines = [
        f"{report.path.name}: {report.kind}, {report.bytes / MIB:.2f} MiB",
        f"{report.parameters:,} parameters in {report.tensors} tensors ({dtypes})",
    ]
    if report.networks:
        lines.append("Networks: " + ", ".join(f"{name} in {count} layers" for name, count in report.networks.items()))
    for part in report.parts:
        ranks = ", ".join(f"{rank or 'full'} ({count})" for rank, count in sorted(part.ranks.items()))
        alphas = ", ".join(f"{alpha} ({count})" for alpha, count in part.alphas.items())
        lines.append(f"{part.model}: {part.layers} layers, rank {ranks or '-'}, alpha {alphas or '-'}")
    lines += [f"{name}: {value}" for name, value in (report.fields | report.training).items()]
    if report.embeddings:
        lines.append(f"Embeddings: {', '.join(report.embeddings)}")
    if report.tags:
        lines.append("Tags: " + ", ".join(f"{tag} {count}" for tag, count in report.tags.items()))
    largest = max((row.norm for row in report.norms), default=0.0)
    if largest:
        lines.append("Norm of the weight change per block:")
        lines += [f"    {row.block:<8} {row.norm:8.3f} {'#' * round(BAR * row.norm / largest)}" for row in report.norms]
    if report.problem:
        lines.append(f"Not usable as a LoRA here: {report.problem}")
    return lines
