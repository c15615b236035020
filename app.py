"""Start LoRA Studio in the browser: `python app.py`. Also the entry point of a Hugging Face Space."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lora_studio.errors import StudioError
from lora_studio.ui.gc_freeze import gc_frozen
from lora_studio.workspace.project import Home


def main(
    share: Annotated[bool, typer.Option("--share", help="Also serve at a public gradio.live address.")] = False,
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="USER:PASSWORD",
            help="The owner's login. The list of processes shows it; $LORA_STUDIO_AUTH is not shown there. "
            "$LORA_STUDIO_VISITOR_AUTH adds one for visitors, who look and draw test grids.",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(metavar="H", help="Address to serve on; 0.0.0.0 for the local network.")
    ] = None,
    port: Annotated[int | None, typer.Option(metavar="P", help="Port; default: the first free one from 7860.")] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Accept this host name, too, like that of a tunnel. Can be repeated."),
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of projects, cache and models (default: $LORA_STUDIO_HOME or ~/lora-studio)."
        ),
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Open with the example project.")] = False,
) -> None:
    """Curate, plan, train and test SDXL LoRAs in the browser."""
    with gc_frozen():  # the imported modules are a million objects: a collection takes 0.6 s
        from lora_studio.ui.launch import serve

    studio_home = Home.locate(home)
    try:
        served = serve(
            studio_home, share=share, auth=auth, host=host, port=port, allowed_hosts=allow_host or (), demo=demo
        )
    except StudioError as error:
        print(f"Error: {error.message}", error.remedy, sep="\n", file=sys.stderr)
        raise typer.Exit(error.exit_status) from error
    print(f"LoRA Studio is running at {served.url}  (projects in {studio_home.path}; Ctrl+C to stop)", flush=True)
    if served.share_url:
        print(f"Public address: {served.share_url}", flush=True)
    if served.account is not None and served.account.is_generated:
        print(f"Log in as {served.account.user} with the password {served.account.password}", flush=True)
        print("It is new at every start; set your own in the environment: LORA_STUDIO_AUTH=USER:PASSWORD", flush=True)
    if served.visitor is not None:
        print(f"Visitors log in as {served.visitor.user}: they see the project that you have open.", flush=True)
    served.wait()


if __name__ == "__main__":
    typer.run(main)
