"""The command `release`: a LoRA as a folder and a zip to share, and its upload to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lora_studio.cli.console import Json, err_console, print_json, print_lines
from lora_studio.cli.options import field_options
from lora_studio.sharing.folder import build_release
from lora_studio.sharing.options import ReleaseOptions
from lora_studio.sharing.upload import upload_release


@field_options(
    ReleaseOptions,
    {name: f"--{name.replace('_', '-')}" for name in ReleaseOptions.model_fields},
)
def release(
    source: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder , of which the best is taken, or a LoRA file.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the new folder is made (default: `release` in the run).")
    ] = None,
    upload: Annotated[
        str, typer.Option("--upload", metavar="USER/NAME", help="Upload it to this repository on the Hub.")
    ] = "",
    public: Annotated[bool, typer.Option("--public", help="With --upload: visible to everybody.")] = False,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Write a LoRA as a folder and a zip: file, previews, grid, model card, A1111 sidecar, text for Civitai."""
    result = build_release(source, ReleaseOptions.parse(given), out=out)
    if upload:
        err_console.print(f"Uploading {len(result.files)} files to {upload}.", highlight=False, markup=False)
        result.url = upload_release(result.folder, upload, private=not public)
    if as_json:
        print_json(result)
        return
    print_lines(f"Release: {result.folder}", f"Zip: {result.zip}", *([f"On the Hub: {result.url}"] if upload else []))
