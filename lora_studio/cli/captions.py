"""`python -m lora_studio caption DIR ...`: check, count, edit, undo and review captions."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lora_studio import api
from lora_studio.cli.console import Folder, Json, out_console, print_json, print_lines
from lora_studio.dataset.captions import edits
from lora_studio.dataset.captions.edit_history import CaptionHistory, EditReport
from lora_studio.dataset.captions.edits import Change, Edit
from lora_studio.dataset.captions.extension import suffixes_in
from lora_studio.dataset.captions.lint import find_fix
from lora_studio.errors import InputError
from lora_studio.plurals import format_count, format_share
from lora_studio.settings.choices import TagPosition

MAX_LINES = 20  # of a table or a preview

caption_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Trigger = Annotated[str | None, typer.Option(help="Trigger word (default: the project's).")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")]


@caption_app.callback()
def caption(context: typer.Context, folder: Folder) -> None:
    """Check, count, edit and review the captions of a folder; the last 50 edits can be undone."""
    context.obj = folder


@caption_app.command("lint")
def lint_command(
    context: typer.Context,
    fix: Annotated[list[str] | None, typer.Option(help="Apply the fix with this code; can be repeated.")] = None,
    trigger: Trigger = None,
    as_json: Json = False,
) -> None:
    """List problems in the captions, and fix them with --fix CODE."""
    folder: Path = context.obj
    findings = api.lint_captions(folder, trigger_word=trigger)
    fixed: list[EditReport] = []
    for key in fix or []:
        _, chosen = find_fix(findings, key)
        fixed.append(api.edit_captions(folder, chosen.edit))
        findings = api.lint_captions(folder, trigger_word=trigger)
    if as_json:
        print_json(
            {
                "findings": [finding.as_dict() for finding in findings],
                "fixed": [report.model_dump(mode="json") for report in fixed],
            }
        )
        return
    for report in fixed:
        print_lines(*report.lines())
    for finding in findings:
        print_lines(f"{finding.rule.title}: {finding.message} {finding.rule.why}")
        print_lines(*(f"    {image}" for image in finding.images[:MAX_LINES]))
        if len(finding.images) > MAX_LINES:
            print_lines(f"    and {len(finding.images) - MAX_LINES} more")
        print_lines(*(f"    --fix {chosen.key}    {chosen.label}" for chosen in finding.fixes))
    if not findings:
        print_lines("No problems found.")


@caption_app.command()
def stats(
    context: typer.Context,
    tag: Annotated[str, typer.Option(help="Count the tags that occur with this one (default: the trigger word).")] = "",
    as_json: Json = False,
) -> None:
    """Count tags, tags that occur together, and tokens; suggest a validation split."""
    found = api.summarize_captions(context.obj, tag=tag)
    if as_json:
        print_json(found)
        return
    for title, counts in (("tag", found.tags), (f"with {found.of}", found.together)):
        table = Table(title, "images", "share", box=None, pad_edge=False)
        for count in counts[:MAX_LINES]:
            table.add_row(count.tag.replace("[", r"\["), str(count.images), f"{count.share:.0%}")
        out_console.print(table)
    tokens = found.tokens
    print_lines(
        f"{format_share(found.captioned, found.images, 'image', 'has', 'have')} a caption, with "
        f"{len(found.tags)} different tags.",
        f"{tokens.least} to {tokens.most} tokens, {tokens.mean:g} on average; "
        f"Longer than {tokens.limit}: {format_count(tokens.too_long, 'caption')}.",
    )
    if found.split:
        print_lines(f"Validation split: {len(found.split.held_out)} images. {found.split.why}")


@caption_app.command()
def add(
    context: typer.Context,
    tags: Annotated[str, typer.Argument(metavar="TAG", help="A tag, or several separated by commas.")],
    position: Annotated[TagPosition, typer.Option(help="Where in the caption.")] = TagPosition.BACK,
    trigger: Trigger = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Add tags to captions that lack them."""
    word = trigger if trigger is not None else api.trigger_word_of(context.obj)
    _edit(context.obj, edits.add(tags, position, word), dry_run, as_json)


@caption_app.command()
def remove(
    context: typer.Context,
    tags: Annotated[list[str], typer.Argument(metavar="TAG...", help="Whole tags.")],
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remove whole tags."""
    _edit(context.obj, edits.remove(tags), dry_run, as_json)


@caption_app.command()
def replace(
    context: typer.Context,
    old: Annotated[str, typer.Argument(help="A whole tag, or a regular expression over whole captions.")],
    new: Annotated[str, typer.Argument(help=r"The replacement; \1 is the first group.")],
    use_regex: Annotated[bool, typer.Option("--regex", help="OLD is a regular expression.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Replace a tag, or the matches of a regular expression."""
    _edit(context.obj, edits.substitute(old, new) if use_regex else edits.replace(old, new), dry_run, as_json)


@caption_app.command()
def undo(
    context: typer.Context,
    list_edits: Annotated[bool, typer.Option("--list", help="List the edits instead of undoing one.")] = False,
    as_json: Json = False,
) -> None:
    """Undo the most recent edit."""
    folder: Path = context.obj
    if not folder.is_dir():
        raise InputError(f"There is no folder {str(folder)!r}.", "Give a folder with images.", code="no_folder")
    if list_edits:
        past = CaptionHistory.of(folder).edits()
        if as_json:
            print_json([edit.model_dump(mode="json") for edit in past])
            return
        for edit in past:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(edit.time))
            print_lines(f"{when}  {edit.what} ({edit.images} images){', undone' if edit.undone else ''}")
        return
    report = api.undo_caption_edit(folder)
    if as_json:
        print_json(report)
        return
    print_lines(*report.lines())


@caption_app.command()
def extension(
    context: typer.Context,
    chosen: Annotated[
        str | None, typer.Argument(metavar="[EXTENSION]", help='Like .txt2; "" is the default: .txt, else .caption.')
    ] = None,
    as_json: Json = False,
) -> None:
    """Show or set which caption files are read and written, by all commands: a folder can have several sets."""
    folder: Path = context.obj
    if chosen is not None:
        api.set_caption_extension(folder, chosen)
    used = suffixes_in(folder)
    if as_json:
        print_json({"suffixes": list(used)})
        return
    print_lines(" or ".join(used))


@caption_app.command()
def review(
    context: typer.Context,
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE...]", help="Paths, or file names in DIR.")
    ] = None,
    mark: Annotated[
        bool | None, typer.Option("--mark/--unmark", help="Mark the images as reviewed, or as not reviewed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the images to review, or mark images as reviewed."""
    if (mark is None) == bool(images):
        message = "--mark and --unmark need images." if mark is not None else "Images need --mark or --unmark."
        raise InputError(message, "Give both, or neither.", code="usage")
    chosen = images or []
    found = api.review_captions(context.obj, mark=chosen if mark else [], unmark=chosen if mark is False else [])
    if as_json:
        print_json(found)
        return
    print_lines(*(f"to review: {image}" for image in found.left), f"{found}.")


def _edit(folder: Path, edit: Edit, dry_run: bool, as_json: bool) -> None:
    """Apply an edit, or print what it would change: the images with their captions before and after."""
    plan = api.plan_caption_edit(folder, edit)
    report = None if dry_run else CaptionHistory.of(folder).apply(plan)
    if as_json:
        print_json(plan if report is None else {**plan.model_dump(mode="json"), **report.model_dump(mode="json")})
        return
    if report is not None:
        print_lines(*report.lines())
        return
    for change in plan.changes[:MAX_LINES]:
        print_lines(*_change_lines(change))
    print_lines(f"Would change {len(plan.changes)} captions and leave {plan.unchanged} unchanged.")


def _change_lines(change: Change) -> tuple[str, ...]:
    return f"{change.image}", f"  - {change.before or ''}", f"  + {change.after}"
