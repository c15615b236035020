"""Every handler of the page, called by those who are not the owner: nothing changes, and nothing else is shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from lora_studio import worker
from lora_studio.dataset.images.sets import project_images
from lora_studio.errors import InputError, StudioError
from lora_studio.example import EXAMPLE_NAME
from lora_studio.settings.job_specs import SweepJob, TagJob
from lora_studio.ui.app import AppFrame
from lora_studio.ui.authorisation import LOCKED, authorise, lock_controls, locks_of
from lora_studio.ui.dataset.curate import CurationHandlers
from lora_studio.ui.dataset.view import Pick
from lora_studio.ui.plan.tab import PlanTab
from lora_studio.ui.roles import Role, Roles, acting_as, allowed, is_owner, role_needed
from lora_studio.ui.server import Mode
from lora_studio.ui.state.jobs import Jobs
from lora_studio.ui.sweep.lightbox import STAR
from lora_studio.ui.sweep.tab import SweepTab
from lora_studio.ui.train.ledger import COLUMNS, EDIT, OPEN, Scope
from lora_studio.ui.widgets.html import TEMPLATES
from lora_studio.workspace.project import Home, Project
from lora_studio.workspace.run_notes import change_notes
from tests.support.interface import OWNER, VISITOR, Interface, error_code
from tests.support.jobs import make_project, make_run, make_sweep, running_status

CANARY = "hush"  # the project that is not open
SECRET = "whisper"  # in its texts, and in the names of what else is the owner's
FOR_GUESTS = {
    "AppFrame": {"load_page", "select_project", "go_to_job", "tick"},
    "PlanTab": {"show_what_if", "draw_picture", "tick"},
    "MakeAll": {"tick"},
    "DatasetTab": {"section_changed", "scan_tick", "tagging_tick"},
    "CaptionHandlers": {"filter_changed", "show_previous", "show_next", "tag_clicked"},
    "CurationHandlers": {"button_clicked"},
    "GalleryHandlers": {"filter_picked", "sort_changed"},
    "ViewerHandlers": {"viewer_acted"},
    "TrainTab": {"tab_selected", "open_form", "select_run", "tick"},
    "RunPanel": {"show_run"},
    "Compare": {"show", "show_samples"},
    "Ledger": {"show", "refresh", "select"},
    "Sections": {"switch", "click_in_ledger"},
    "SweepTab": {"tab_selected", "select_sweep", "pick_in_grid", "select_cell", "tick", "update_cell_count"},
    "Release": {"choose_lora", "choose_preview", "tick"},
    "LoraTools": {"choose_tool", "tick"},
    "Studio": {"opens"},
}
"""All handlers that everybody may call; they are called below with hostile values."""
FOR_VISITORS = {"SweepTab": {"start_sweep", "reuse_settings", "bases_chosen", "add_prompts"}}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Collect the options of workers that would be started."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(worker, "start", lambda folder, home, **options: calls.append(options))
    return calls


@pytest.fixture
def projects(home: Home) -> tuple[Project, Project]:
    """Create the project that others see, and one that they do not see; each has a run and a test."""
    made = make_project(home, EXAMPLE_NAME), make_project(home, CANARY)
    for project in made:
        run = make_run(project)
        make_sweep(project, [run.path / "ink.safetensors"])
    for image in project_images(made[1]):
        image.with_suffix(".txt").write_text(f"{SECRET}, thing", "utf-8")
    made[1].save_info(made[1].info().model_copy(update={"trigger_word": SECRET}))
    change_notes(made[1].runs()[0].path, stars=3, notes=SECRET)
    home.delete_project(make_project(home, f"{SECRET} deleted").name)
    home.presets.mkdir(parents=True)
    (home.presets / f"{SECRET}.toml").write_text("network_dim = 8\n", "utf-8")
    return made


@pytest.fixture(params=[VISITOR, ""], ids=["visitor", "guest of a Space"])
def other(request: pytest.FixtureRequest, home: Home, projects: tuple[Project, Project]) -> Iterator[Interface]:
    """The page of someone who is not the owner, who has opened the example project."""
    built = Interface(home, Mode.SHARED if request.param else Mode.SPACE)
    built.open_project(CANARY)
    built.open_project(EXAMPLE_NAME)
    built.user = request.param
    built.contents[next(number for number, name in built.names.items() if name == "ledger_scope")] = Scope.HOME.value
    yield built
    built.blocks.close(verbose=False)


def contents(home: Home) -> dict[Path, tuple[int, int]]:
    """Return all files of a home with time and size, except what can be rebuilt at any time."""
    files = (path for path in home.path.rglob("*") if path.name != "scan.json" and path.is_file())
    stats = {path: path.stat() for path in files if not path.is_relative_to(home.cache)}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


def handlers_of(declared: dict[str, set[str]]) -> set[str]:
    return {f"{owner}.{name}" for owner, names in declared.items() for name in names}


def qualified_name(event: Any) -> str:
    return str(getattr(event.fn, "__qualname__", "")).removesuffix(".<locals>.<lambda>")


def picks(home: Home) -> list[str]:
    """Return what a hostile page sends for its buttons: what changes something, and what is in the other project."""
    image = project_images(home.project(EXAMPLE_NAME))[0].name
    cell = next((home.project(EXAMPLE_NAME).path / "sweeps").rglob("*.png")).name
    verbs = [f"{verb}:{image}" for verb in (Pick.SHOW, Pick.SET_ASIDE, Pick.KEEP, Pick.RESTORE)]
    return [*verbs, f"{STAR}{cell}", cell, f"{OPEN}:{CANARY}/001-ink", f"{EDIT}:{CANARY}/001-ink", f"../../{CANARY}"]


def violations(page: Interface, home: Home, role: Role) -> list[str]:
    """Return the handlers that change a file or show the project that is not open, whatever someone sends them.

    One that is not for the `role` must refuse; it is called once.
    """
    found, before, seen = [], contents(home), set()
    for event in list(page.blocks.fns.values()):
        name = qualified_name(event)
        if event.fn is None or name in seen:
            continue
        for project, data in calls(event, home) if role_needed(event.fn) <= role else [(CANARY, None)]:
            shown = answer(page, event, project, data)
            if role_needed(event.fn) > role and shown not in ("Error", str(gr.skip())):
                found.append(f"{name} does not refuse")
            sent = project + (data._data["pick"] if data else "")  # an error may quote it
            if SECRET in shown or (CANARY in shown and CANARY not in sent):
                found.append(f"{name} shows what is not open for {sent}")
            if (after := contents(home)) != before:
                found.append(f"{name} changes {sorted(map(str, dict(set(after.items()) ^ set(before.items()))))}")
                before = after
        if role_needed(event.fn) <= role and event.inputs_as_dict:
            seen.add(name)
    return found


def calls(event: Any, home: Home) -> list[tuple[str, Any]]:
    """Return with which project and which data of the event a hostile page calls a handler."""
    if not event.collects_event_data:
        return [(EXAMPLE_NAME, None), (CANARY, None)]
    row = [CANARY if name == "project" else "001-ink" if name == "run" else "" for name in COLUMNS]
    keys = {"presses": "mark aside", "text": CANARY[:2], "row_value": row, "index": [0, 0]}
    data = [gr.EventData(None, {"pick": pick, "value": pick, **keys}) for pick in picks(home)]
    return [(EXAMPLE_NAME, item) for item in data] + [(CANARY, item) for item in data[-3:]]


def answer(page: Interface, event: Any, project: str, data: Any) -> str:
    """Return what a handler shows, as text; for an error its type."""
    given = [
        project if page.names.get(item._id) in ("project", "project_list") else page.contents[item._id]
        for item in event.inputs
    ]
    values = [dict(zip(event.inputs, given, strict=True))] if event.inputs_as_dict else given
    try:
        return str(page.run(event.fn, *values, *([data] if data else [])))
    except (gr.Error, StudioError, TypeError, ValueError, AttributeError, KeyError) as error:
        return type(error).__name__


def test_the_table_of_open_handlers_is_complete(home: Home) -> None:
    page = Interface(home, Mode.SHARED)
    needed = {qualified_name(event): role_needed(event.fn) for event in page.blocks.fns.values() if event.fn}
    assert {name for name, role in needed.items() if role is Role.GUEST} == handlers_of(FOR_GUESTS)
    assert {name for name, role in needed.items() if role is Role.VISITOR} == handlers_of(FOR_VISITORS)
    assert len(needed) > 100
    page.blocks.close(verbose=False)


def test_nobody_else_changes_or_reads_what_is_not_theirs(
    other: Interface, home: Home, started: list[dict[str, Any]]
) -> None:
    assert violations(other, home, role_of(other)) == []


def role_of(page: Interface) -> Role:
    return Role.VISITOR if page.user == VISITOR else Role.GUEST


def test_a_handler_that_is_added_later_is_refused_or_found(
    other: Interface, home: Home, projects: tuple[Project, Project], started: list[dict[str, Any]]
) -> None:
    def delete(name: str) -> str:
        home.delete_project(home.project(name).name)
        return name

    @allowed(Role.GUEST)
    def read(name: str) -> str:
        return project_images(home.project(CANARY))[0].with_suffix(".txt").read_text("utf-8")

    @allowed(Role.GUEST)
    def write(name: str) -> None:
        (home.path / "written").touch()

    blocks = gr.Blocks()
    with blocks:
        box, button = gr.Textbox(CANARY), gr.Button("Go")
        button.click(delete, box, box)
    authorise(blocks, Roles(Mode.SHARED))
    other.contents |= {box._id: CANARY}
    other.blocks = blocks
    assert violations(other, home, role_of(other)) == []
    with pytest.raises(gr.Error):
        other.run(blocks.fns[0].fn, CANARY)
    assert projects[1].path.is_dir()
    with blocks:
        button.click(read, box, box)
        button.click(write, box)
    assert {text.split()[0].rpartition(".")[2] for text in violations(other, home, role_of(other))} >= {"read", "write"}
    blocks.close(verbose=False)


def test_others_see_the_project_that_the_owner_has_open(home: Home, projects: tuple[Project, Project]) -> None:
    page = Interface(home, Mode.SHARED)
    page.user = VISITOR
    shown = page.open_project(CANARY)
    assert shown["project_list"] == {"choices": [], "value": None}, "the owner has not opened any"
    page.user = OWNER
    page.open_project(EXAMPLE_NAME)
    page.user = VISITOR
    shown = page.open_project(CANARY)
    assert shown["project_list"] == {"choices": [EXAMPLE_NAME], "value": EXAMPLE_NAME}
    refused = page.call(AppFrame.select_project, project=EXAMPLE_NAME, project_list=CANARY)
    assert error_code(refused["frame_notice"]) == "no_project"
    page.user = OWNER
    page.open_project(CANARY)
    page.user = VISITOR
    assert page.open_project("")["project_list"]["choices"] == [CANARY]
    page.blocks.close(verbose=False)


def test_the_guests_of_a_space_see_the_example_whatever_the_owner_does(
    home: Home, projects: tuple[Project, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPACE_ID", "me/studio")
    page = Interface(home, Mode.SPACE)
    page.open_project(CANARY)
    page.user = ""
    shown = page.open_project(CANARY)
    assert shown["project_list"]["choices"] == [EXAMPLE_NAME]
    assert "https://huggingface.co/spaces/me/studio?duplicate=true" in shown["tour"]
    assert "Read-only tour" in shown["role"]
    page.blocks.close(verbose=False)


def test_what_others_may_not_use_is_locked_on_their_pages(home: Home, projects: tuple[Project, Project]) -> None:
    page = Interface(home, Mode.SHARED)
    assert page.open_project(EXAMPLE_NAME).get("project_menu_button", {}).get("interactive") is not False
    page.user = VISITOR
    shown = page.open_project(EXAMPLE_NAME)
    for name in ("project_menu_button", "train_start", "dataset_files", "plan_trigger", "test_upload"):
        assert shown[name]["interactive"] is False, name
    assert "Visitor" in shown["role"]
    assert shown.get("test_start", {}).get("interactive") is not False
    assert page.call(SweepTab.tab_selected).get("test_start", {}).get("interactive") is not False
    with pytest.raises(gr.Error, match="owner"):
        page.call(PlanTab.update_plan)
    page.blocks.close(verbose=False)


def test_buttons_in_html_are_locked_for_those_who_may_not_use_them() -> None:
    def forget() -> str:
        return "forgotten"

    @allowed(Role.GUEST)
    def look() -> str:
        return "seen"

    with gr.Blocks() as blocks:
        own, open_to_all = gr.HTML("a", elem_classes=["cards"]), gr.HTML("b")
        own.click(forget, None, own)
        open_to_all.click(look, None, open_to_all)
    locks = locks_of(blocks)
    with acting_as(Role.VISITOR):
        shown = lock_controls({own: "new", open_to_all: "new"}, locks)
    assert shown[own] == {"__type__": "update", "value": "new", "elem_classes": ["cards", LOCKED]}
    assert shown[open_to_all] == "new"
    with acting_as(Role.VISITOR):
        assert " disabled" in act_button()
    assert " disabled" not in act_button()
    blocks.close(verbose=False)


def act_button() -> str:
    macros = TEMPLATES.get_template("dataset/macros.html").module
    return str(macros.action({"pick": "set_aside:a.png", "title": "", "key": "", "text": "Set aside"}))


def test_a_visitor_opens_an_image_but_sets_none_aside(home: Home, projects: tuple[Project, Project]) -> None:
    page = Interface(home, Mode.SHARED)
    page.open_project(EXAMPLE_NAME)
    page.user = VISITOR
    image = project_images(projects[0])[0].name
    shown = page.call(CurationHandlers.button_clicked, f"{Pick.SET_ASIDE}:{image}")
    assert error_code(shown["dataset_notice"]) == "role"
    page.blocks.close(verbose=False)


def sweep(project: Project, **changes: Any) -> SweepJob:
    lora = project.runs()[0].path / "ink.safetensors"
    return SweepJob.parse({"loras": [lora], "bases": ["embedded"], "prompts": ["x"], "strengths": [0, 1]} | changes)


def test_a_visitor_draws_a_grid_without_the_owners_token(
    home: Home, projects: tuple[Project, Project], started: list[dict[str, Any]]
) -> None:
    jobs, project = Jobs(home, local=False, is_owner=is_owner), projects[0]
    with acting_as(Role.VISITOR):
        jobs.start(project.new_sweep_dir(), sweep(project))
    assert started == [{"trusted": False}]


@pytest.mark.parametrize(
    ("job", "code"),
    [
        ({"bases": ["some/finetune"]}, "visitor_base"),
        ({"prompts": ["x", "y"], "seeds": range(32)}, "visitor_cells"),
    ],
)
def test_the_grids_of_visitors_are_small_and_download_nothing(
    home: Home, projects: tuple[Project, Project], started: list[dict[str, Any]], job: dict[str, Any], code: str
) -> None:
    jobs, project = Jobs(home, local=False, is_owner=is_owner), projects[0]
    with acting_as(Role.VISITOR), pytest.raises(InputError) as caught:
        jobs.start(project.new_sweep_dir(), sweep(project, **job))
    assert caught.value.code == code
    assert started == []


def test_visitors_start_nothing_else_and_not_while_the_studio_is_busy(
    home: Home, projects: tuple[Project, Project], started: list[dict[str, Any]]
) -> None:
    jobs, project = Jobs(home, local=False, is_owner=is_owner), projects[0]
    with acting_as(Role.VISITOR), pytest.raises(InputError) as caught:
        jobs.start(project.new_tag_dir(), TagJob(dataset=project.dataset_dir, tagger="demo"))
    assert caught.value.code == "role"
    make_run(projects[1], final=False, **running_status())
    with acting_as(Role.VISITOR), pytest.raises(InputError) as caught:
        jobs.start(project.new_sweep_dir(), sweep(project))
    assert caught.value.code == "busy"
    assert started == []
