"""Serving the interface. Every launch parameter that gradio would read from an environment variable is set."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from filelock import Timeout
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from lora_studio.errors import InputError, StudioError, disk_errors
from lora_studio.example import ensure_example
from lora_studio.ui.accounts import Account, LoginLimit, account_for, visitor_for
from lora_studio.ui.app import build_app
from lora_studio.ui.gate import Gate
from lora_studio.ui.roles import roles_for
from lora_studio.ui.server import Guard, Mode, hosts_for, mode_for, share_names
from lora_studio.ui.sessions import keep_lean_sessions
from lora_studio.ui.state.making import make_tour
from lora_studio.ui.theme import CSS_FILE, studio_theme
from lora_studio.ui.uploads import UploadLimit
from lora_studio.worker import start_next, take_up_remote_runs
from lora_studio.workspace.project import Home

MAX_UPLOAD = "4gb"
MAX_PARALLEL_HANDLERS = 8


QUEUE_SECONDS = 3.0


class QueueRunner(threading.Thread):
    """Starts the runs of a home's queue: each worker starts the next one, except if it is killed."""

    def __init__(self, home: Home) -> None:
        super().__init__(name="run queue", daemon=True)
        self.home = home
        self.stopped = threading.Event()

    def run(self) -> None:
        """Start the first waiting run whenever no job is active, until `stopped` is set."""
        while not self.stopped.wait(QUEUE_SECONDS):
            try:
                start_next(self.home)
            except (StudioError, OSError, Timeout) as error:
                logging.getLogger(__name__).warning("The run queue: %s", error)


@dataclass(frozen=True)
class Served:
    """A running server and its URLs."""

    blocks: gr.Blocks
    mode: Mode
    url: str
    share_url: str | None
    runner: QueueRunner
    account: Account | None = None
    visitor: Account | None = None

    def wait(self) -> None:
        """Block until the process is interrupted."""
        self.blocks.block_thread()

    def close(self) -> None:
        """Stop the server; active jobs continue in their own processes."""
        self.runner.stopped.set()
        self.blocks.close(verbose=False)


def serve(
    home: Home,
    *,
    share: bool = False,
    auth: str | None = None,
    host: str | None = None,
    port: int | None = None,
    allowed_hosts: Sequence[str] = (),
    demo: bool = False,
) -> Served:
    """Start serving the studio and return at once.

    `auth` is USER:PASSWORD of the owner; a shared studio without it gets a generated password. `allowed_hosts` are
    more host names to accept, like that of a tunnel. Raises InputError for a home whose files gradio would serve, a
    malformed `auth`, or a port that is in use.
    """
    home.check_private()
    mode = mode_for(share=share, host=host, allowed=allowed_hosts)
    account = account_for(mode, auth)
    visitor = visitor_for(account)
    roles = roles_for(mode, account, visitor)
    with disk_errors(home.path):
        home.thumbnails.mkdir(parents=True, exist_ok=True)
    if demo or mode is Mode.SPACE:  # what the guests of a Space look at
        ensure_example(home)
    hosts = hosts_for(host, allowed=allowed_hosts)
    blocks = build_app(home, mode, roles)
    blocks.queue(api_open=False, default_concurrency_limit=MAX_PARALLEL_HANDLERS)
    try:
        app, url, share_url = blocks.launch(
            server_name=host or ("0.0.0.0" if mode is Mode.SPACE else "127.0.0.1"),
            server_port=port,
            share=share and mode is not Mode.SPACE,
            auth=[(known.user, known.password) for known in (account, visitor) if known is not None] or None,
            root_path=None if mode is Mode.SPACE else "",
            theme=studio_theme(),
            css_paths=[CSS_FILE],
            allowed_paths=[str(home.thumbnails)],
            blocked_paths=[str(home.path / name) for name in ("projects", "models", "queue", "trash")],
            app_kwargs={
                "middleware": [
                    Middleware(Guard, hosts=hosts, mode=mode),
                    Middleware(LoginLimit),
                    *([Middleware(Gate, roles=roles)] if roles.are_needed else []),
                    Middleware(UploadLimit, folder=lambda: Path(get_upload_folder())),
                ],
                "docs_url": None,
                "redoc_url": None,
            },
            max_file_size=MAX_UPLOAD,
            footer_links=["gradio", "settings"],
            show_error=True,
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            num_workers=0,
            pwa=False,
            strict_cors=True,
            inbrowser=False,
            quiet=True,
            prevent_thread_lock=True,
            _frontend=False,  # else gradio requests its own page, and fails if a busy machine takes 3 s to respond
        )
    except OSError as error:
        raise InputError(
            f"The studio cannot serve on port {port or 'any from 7860 on'}: {error}.",
            "Choose another one with --port.",
            code="port",
        ) from error
    keep_lean_sessions(app)
    hosts.names.update(share_names([share_url]))
    take_up_remote_runs(home)
    runner = QueueRunner(home)
    runner.start()
    if mode is Mode.SPACE:
        _make_tour(home)
    return Served(blocks, mode, url, share_url, runner, account, visitor)


def _make_tour(home: Home) -> None:
    """Make the example project for the guests of a Space; what prevents that does not prevent the studio."""
    try:
        make_tour(home)
    except StudioError as error:
        logging.getLogger(__name__).warning("The example is not made: %s", error)
