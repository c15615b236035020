"""The frame of the page: header, project menu, four tabs, and the timer that updates them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote

import gradio as gr
from gradio.blocks import Block
from markupsafe import Markup, escape

from lora_studio.device import find_gpu, unused_gpu_error
from lora_studio.errors import InputError
from lora_studio.example import create_example, unused_name
from lora_studio.ui.authorisation import authorise, lock_controls, locks_of
from lora_studio.ui.context import Page, Studio, TabName, guarded
from lora_studio.ui.dataset import tab as dataset_tab
from lora_studio.ui.demo_tour import tour_card
from lora_studio.ui.plan import tab as plan_tab
from lora_studio.ui.project_menu import Menu, ProjectMenu, build_menu
from lora_studio.ui.roles import Role, Roles, allowed, current_role, is_owner
from lora_studio.ui.server import Mode
from lora_studio.ui.shortcuts import key_sheet
from lora_studio.ui.state.jobs import ActiveJob, Jobs
from lora_studio.ui.sweep import tab as sweep_tab
from lora_studio.ui.train import tab as train_tab
from lora_studio.ui.welcome import Welcome, build_welcome, machine_card, recent_projects
from lora_studio.ui.widgets.charts import chart_script
from lora_studio.ui.widgets.choices import checked_by_handlers
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.html import error_card, html, pill, render, script
from lora_studio.workspace.project import Home, Project

TITLE = "LoRA Studio"
TICK_SECONDS = 1.5
IDLE_TICKS = 8
TABS: dict[TabName, tuple[str, Callable[[Studio, gr.Tab], Page]]] = {
    TabName.PLAN: ("1 · Plan", plan_tab.build),
    TabName.DATASET: ("2 · Dataset", dataset_tab.build),
    TabName.TRAIN: ("3 · Train", train_tab.build),
    TabName.TEST: ("4 · Test", sweep_tab.build),
}
TAB_OF_FOLDER = {
    "runs": TabName.TRAIN,
    "sweeps": TabName.TEST,
    "tags": TabName.DATASET,
    "measurements": TabName.PLAN,
    "first_tests": TabName.PLAN,
    "downloads": TabName.PLAN,
}


class Header(NamedTuple):
    """The components above the tabs."""

    project: gr.Dropdown
    menu_button: gr.Button
    job_pill: gr.Button
    role: gr.HTML


def build_app(home: Home, mode: Mode = Mode.LOCAL, roles: Roles | None = None) -> gr.Blocks:
    """Build the interface for the projects of a home, without serving it.

    Every page gets the same components, whoever opens it: what is in the home is filled in when the page loads.
    """
    roles = roles or Roles(mode)
    blocks = gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400))
    with blocks:
        project = gr.BrowserState("", storage_key="lora-studio-project", secret=TITLE)
        run, taken_back, edited = gr.State(None), gr.State([]), gr.State(None)
        timer = gr.Timer(TICK_SECONDS, active=False)
        bar = gr.HTML(elem_id="loading-bar", js_on_load=script("request_queue.js"))
        html(js="form_fields.js")
        html(js="uploads.js")
        html(js="tab_history.js")
        html(js="project_menu.js")
        html(js="table_search.js")
        chart_script()
        header = _header(mode)
        menu = build_menu()
        tour = html(elem_id="tour")
        demo_tour = html(elem_id="demo-tour", js="demo_tour.js")
        notice = html(elem_id="frame-notice")
        welcome = build_welcome(visible=not home.projects())
        with gr.Column(visible=bool(home.projects())) as work, gr.Tabs(elem_classes="studio-tabs") as tabs:
            jobs = Jobs(home, local=mode is Mode.LOCAL, is_owner=is_owner)
            studio = Studio(home, mode, jobs, project, run, tabs, timer, taken_back, edited, loading_bar=bar)
            pages: list[Page] = []
            for name, (label, build) in TABS.items():
                with gr.Tab(label, id=name.value) as tab:
                    pages.append(build(studio, tab))
        frame = AppFrame(studio, header, menu, notice, demo_tour, welcome, work, pages)
        frame.wire()
        frame.wire_load(blocks, tour, roles)
    authorise(blocks, roles)
    return blocks


def _header(mode: Mode) -> Header:
    with gr.Row(elem_classes="studio-header"):
        with gr.Column(scale=2, min_width=180):
            html(render("app/name.html", title=TITLE), classes="studio-name")
        with gr.Column(scale=3, min_width=260), gr.Row():
            project_list = checked_by_handlers(
                gr.Dropdown(
                    [], value=None, label="Project", show_label=False, container=False, scale=4, elem_id="project"
                )
            )
            menu_button = gr.Button("Projects", size="sm", scale=1, min_width=80, elem_id="project-menu-button")
        with gr.Column(scale=3, min_width=260), gr.Row(elem_classes="pills"):
            html(key_sheet(), js="shortcuts.js", elem_id="shortcuts")
            html(_pills(mode))
            role = html(elem_id="role")
            if mode is Mode.SPACE and os.environ.get("OAUTH_CLIENT_ID"):
                gr.LoginButton("Sign in as the owner", size="sm", elem_id="sign-in")
            job_pill = gr.Button(visible=False, size="sm", elem_classes="job-pill", elem_id="job-pill")
    return Header(project_list, menu_button, job_pill, role)


def _pills(mode: Mode) -> str:
    gpu = find_gpu()
    if gpu is None:
        device = pill("CPU", "No NVIDIA GPU was found. Small models train well on the CPU; SDXL itself needs a GPU.")
    elif (error := unused_gpu_error()) is not None:
        device = pill(f"{gpu.name} · not usable", str(error), warning=True)
    else:
        device = pill(
            f"{gpu.name} · {gpu.vram_gib:g} GiB", "Reported by the driver. The precision is chosen when a run starts."
        )
    return render("app/pills.html", pills=[pill(mode.value, mode.reason), device])


def _trash(home: Home) -> list[tuple[str, str]]:
    """Return the deleted projects as (label, id)."""
    return [
        (f"{path.name} (deleted {_day(path.parent.name)})", f"{path.parent.name}/{path.name}")
        for path in home.deleted_projects()
    ]


def _day(folder_name: str) -> str:
    """Return the date in the name of a trash folder: 2026-01-31 for `20260131-...`."""
    return f"{folder_name[:4]}-{folder_name[4:6]}-{folder_name[6:8]}"


class AppFrame:
    """Event handlers of the header and the project menu, and what connects the tabs."""

    def __init__(
        self,
        studio: Studio,
        header: Header,
        menu: Menu,
        notice: gr.HTML,
        demo_tour: gr.HTML,
        welcome: Welcome,
        work: gr.Column,
        pages: list[Page],
    ) -> None:
        self.studio = studio
        self.home = studio.home
        self.header = header
        self.menu = menu
        self.notice = notice
        self.demo_tour = demo_tour
        self.welcome = welcome
        self.work = work
        self.pages = pages
        self.project_menu = ProjectMenu(studio, menu, notice)
        self.seen = gr.State(IDLE_TICKS)  # see `tick`

    @property
    def outputs(self) -> list[Block]:
        """The components that `show_project` updates."""
        studio = self.studio
        welcome = [self.welcome.column, self.welcome.recent, self.welcome.machine]
        own = [studio.project, studio.tabs, studio.timer, self.notice, self.demo_tour, *welcome, self.work, self.seen]
        frame = [*own, *self.header, *self.menu]
        return list(dict.fromkeys([*frame, *(item for page in self.pages for item in page.outputs)]))

    def wire_load(self, blocks: gr.Blocks, tour: gr.HTML, roles: Roles) -> None:
        """Register the event of a loaded page, after all others: it locks what the user may not use."""
        studio, locks = self.studio, locks_of(blocks) if roles.are_needed else {}

        @functools.wraps(self.load_page)
        def load(name: str | None) -> Updates:
            shown = lock_controls(self.load_page(name), locks)
            if not roles.are_needed:
                return shown
            role = current_role()
            return {**shown, self.header.role: pill(role.title, role.reason), tour: _tour(role)}

        outputs = list(dict.fromkeys([*self.outputs, tour, *locks]))
        blocks.load(guarded(self.notice, load), [studio.project], outputs, **studio.with_progress)

    def wire(self) -> None:
        """Register the events, except that of a loaded page."""
        studio, header, menu = self.studio, self.header, self.menu
        everything = self.outputs

        def on(event: Callable[..., object], handler: Callable[..., Updates], inputs: list[object]) -> None:
            event(guarded(self.notice, handler), inputs, everything, **studio.with_progress)

        on(header.project.input, self.select_project, [studio.project, header.project])
        on(menu.new.click, self.create_project, [menu.name])
        on(menu.rename.click, self.rename_project, [studio.project, menu.name])
        on(menu.duplicate.click, self.duplicate_project, [studio.project, menu.name])
        on(menu.delete.click, self.delete_project, [studio.project])
        on(menu.restore.click, self.restore_project, [menu.trash])
        on(header.job_pill.click, self.go_to_job, [])
        welcome = self.welcome
        on(welcome.example.click, self.open_example, [])
        on(welcome.images.click, self.start_with_import, [])
        on(welcome.plan.click, self.start_with_plan, [])
        on(welcome.recent.click, self.open_recent, [])
        for upload in (welcome.upload, menu.upload):
            on(upload.upload, self.open_zip, [upload])
        on(menu.start_page.click, self.show_start_page, [])
        self.demo_tour.click(self.update_tour, [studio.project], [self.demo_tour], **NO_PROGRESS)
        self.project_menu.wire(header.menu_button)
        studio.timer.tick(
            self.tick,
            [studio.project, self.seen],
            [header.job_pill, self.seen, studio.timer, self.demo_tour],
            **NO_PROGRESS,
            queue=False,
        )

    def show_project(self, name: str | None, tab: TabName | None = None) -> Updates:
        """Show a project in all tabs; the first project if there is none with this name."""
        projects = self.studio.visible_projects()
        names = [project.name for project in projects]  # the one last worked on first
        chosen = next((project for project in projects if project.name == name), projects[0] if projects else None)
        trashed = _trash(self.home) if is_owner() else []
        if is_owner():
            self.studio.opened.name = chosen.name if chosen else ""
        updates: Updates = {
            self.studio.project: chosen.name if chosen else "",
            self.header.project: gr.Dropdown(choices=names, value=chosen.name if chosen else None),
            self.welcome.column: gr.Column(visible=chosen is None and is_owner()),
            **(self._welcome() if chosen is None and is_owner() else {}),
            self.work: gr.Column(visible=chosen is not None),
            self.demo_tour: tour_card(chosen) if is_owner() else "",
            self.menu.name: "",
            self.menu.panel: gr.Column(visible=False),
            self.menu.is_open: False,
            self.menu.trash_row: gr.Row(visible=bool(trashed)),
            self.menu.trash: gr.Dropdown(choices=trashed, value=None),
            **self._job_updates(self._active()),
        }
        if chosen is not None:
            for page in self.pages:
                updates |= page.refresh(chosen)
        if tab is not None:
            updates |= self.studio.goto(tab)
        return updates

    def show_start_page(self) -> Updates:
        """Close the open project and show the start page."""
        return {
            self.studio.project: "",
            self.header.project: gr.Dropdown(value=None),
            self.demo_tour: "",
            self.welcome.column: gr.Column(visible=True),
            self.work: gr.Column(visible=False),
            self.menu.panel: gr.Column(visible=False),
            self.menu.is_open: False,
            **self._welcome(),
        }

    def _welcome(self) -> Updates:
        recent = recent_projects(self.home.recent_projects())
        return {self.welcome.recent: recent, self.welcome.machine: machine_card(self.home)}

    def update_tour(self, name: str) -> Updates | dict[str, Any]:
        """Show the next step of the guided tour."""
        return self._tour_update(name) or gr.skip()

    def _tour_update(self, name: str) -> Updates:
        known = next((project for project in self.home.projects() if project.name == name), None)
        return {self.demo_tour: tour_card(known)} if is_owner() else {}

    def open_recent(self, event: gr.EventData) -> Updates:
        """Open a project of the start page."""
        return self.show_project(self.studio.find_project(event.pick).name)

    def open_zip(self, file: str | None) -> Updates:
        """Create a project from an exported one, and open it."""
        return self.show_project(self.project_menu.import_zip(file).name)

    @allowed(Role.GUEST)
    def load_page(self, name: str | None) -> Updates:
        """Show the project that the browser remembers. A menu that was opened while the page loaded stays open."""
        menu = (self.menu.panel, self.menu.is_open, self.menu.name)
        return {component: update for component, update in self.show_project(name).items() if component not in menu}

    @allowed(Role.GUEST)
    def select_project(self, current: str, name: str) -> Updates:
        """Switch to another project. The list also reports the current one, when it loses the focus.

        A project that is gone, as after a click in another window, is dropped from the list.
        """
        if name == current:
            return {}
        try:
            return self.show_project(self.studio.find_project(name).name)
        except InputError as error:
            return {**self.show_project(current), self.notice: error_card(error)}

    def create_project(self, name: str) -> Updates:
        """Create a project and open its plan."""
        return self.show_project(self.home.create_project(name).name, TabName.PLAN)

    def rename_project(self, current: str, name: str) -> Updates:
        """Rename the selected project."""
        return self.show_project(self.home.rename_project(self.studio.find_project(current).name, name).name)

    def duplicate_project(self, current: str, name: str) -> Updates:
        """Copy the selected project without its runs."""
        source = self.studio.find_project(current).name
        copy = self.home.duplicate_project(source, name or unused_name(self.home, f"{source} copy"))
        return self.show_project(copy.name)

    def delete_project(self, current: str) -> Updates:
        """Move the selected project to the trash."""
        project = self.studio.find_project(current)
        self.home.delete_project(project.name)
        message = f"{project.name} is in the trash. Use Restore in the Projects menu to bring it back."
        gr.Info(str(escape(message)))  # gradio shows it as HTML
        return self.show_project(None)

    def restore_project(self, trashed: str | None) -> Updates:
        """Restore a project from the trash."""
        known = {f"{path.parent.name}/{path.name}": path for path in self.home.deleted_projects()}
        if trashed not in known:
            raise InputError("No deleted project is selected.", "Select one in the Trash list.", code="trash")
        return self.show_project(self.home.restore_project(known[trashed]).name)

    def open_example(self) -> Updates:
        """Create the example project and open its plan."""
        return self.show_project(create_example(self.home).name, TabName.PLAN)

    def start_with_import(self) -> Updates:
        """Create a project and open its dataset."""
        return self.show_project(self._create_unnamed().name, TabName.DATASET)

    def start_with_plan(self) -> Updates:
        """Create a project and open its plan."""
        return self.show_project(self._create_unnamed().name, TabName.PLAN)

    @allowed(Role.GUEST)
    def go_to_job(self) -> Updates:
        """Open the project and tab of the running job."""
        active = self._active()
        if not active:
            return self._job_updates(active)
        tab = TAB_OF_FOLDER[active[0].folder.path.parent.name]
        if active[0].project is None:
            return self.studio.goto(tab)
        return self.show_project(active[0].project.name, tab)

    @allowed(Role.GUEST)
    def tick(self, name: str, seen: str | int) -> Updates:
        """Update the job pill. `seen` is its text, or the number of ticks since the last job ended.

        The timer stops `IDLE_TICKS` after the last job ended, so that every tab shows its end, even if the response to
        an earlier click arrives after it.
        """
        active = self._active()
        if active:
            text = _pill_text(active)
            return {self.seen: seen} if text == seen else {self.header.job_pill: _job_pill(active), self.seen: text}
        if isinstance(seen, str):
            return {self.header.job_pill: _job_pill(active), self.seen: 0, **self._tour_update(name)}
        return {self.seen: seen + 1} if seen < IDLE_TICKS else {self.studio.timer: gr.Timer(active=False)}

    def _active(self) -> list[ActiveJob]:
        """Return the active jobs that the request may see; downloads are the owner's."""
        active = self.studio.jobs.active()
        return [job for job in active if is_owner() or (job.project and self.studio.may_see(job.project.name))]

    def _job_updates(self, active: list[ActiveJob]) -> Updates:
        return {
            self.header.job_pill: _job_pill(active),
            self.seen: _pill_text(active) if active else IDLE_TICKS,
            self.studio.timer: gr.Timer(active=bool(active)),
        }

    def _create_unnamed(self) -> Project:
        return self.home.create_project(unused_name(self.home, "my-lora"))


def _tour(role: Role) -> Markup | str:
    """Return what the guests of a Space read above the tabs, with a link that duplicates the Space."""
    space = os.environ.get("SPACE_ID", "")
    if role is not Role.GUEST:
        return ""
    url = f"https://huggingface.co/spaces/{quote(space)}?duplicate=true" if space else ""
    return render("app/tour.html", title=role.title, text=role.reason, url=url, link="Duplicate this Space")


def _pill_text(active: list[ActiveJob]) -> str:
    if not active:
        return ""
    queued = f" · {len(active) - 1} queued" if len(active) > 1 else ""
    return f"{active[0].text}{queued}"


def _job_pill(active: list[ActiveJob]) -> gr.Button:
    return gr.Button(value=_pill_text(active), visible=bool(active))
