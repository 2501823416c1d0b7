"""`rwkv state`: what a model keeps of a text, saved in a small file, to continue from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rwkv_cli.cli import completion, options
from rwkv_cli.cli.help_pages import Command, Group
from rwkv_cli.cli.sampling_options import with_sampling
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import UsageError
from rwkv_cli.sampling_settings import SamplingOverrides

USE, LOOK, MANAGE = "Use", "Look", "Manage"

app = typer.Typer(
    name="state",
    cls=Group,
    help="""Save and restore model states.

A state is everything that a model keeps of a text: one small file, however long the text is.

Examples:
    # Read a file once, then ask about it
    rwkv state save book --prompt-file book.txt
    rwkv state load book --prompt "Who is the hero?"
""",
)

Name = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A name of your own, or a path.")]
Existing = Annotated[
    str, typer.Argument(metavar="NAME|FILE", help="A saved state.", autocompletion=completion.states)
]


@app.command(cls=Command, rich_help_panel=USE)
def save(
    name: Name,
    *,
    prompt: options.Text = None,
    prompt_file: options.PromptFile = None,
    template: options.DocumentTemplate = None,
    system: options.System = None,
    model: options.Model = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    state: options.State = None,
    no_text: options.NoText = False,
    compact: options.Compact = False,
    no_cache: options.NoCache = False,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Read a text once, and save the state of the model.

    The text comes from --prompt, --prompt-file or standard input. It is read as a document, unless --template formats
    it as a prompt. With --state, it follows the text of that state.

    Examples:
        # Read a file
        rwkv state save book --prompt-file book.txt
        # Read what another program prints
        git log | rwkv state save history
        # Read a second part after the first
        rwkv state save both --state book -f part-two.txt
    """
    from rwkv_cli import settings
    from rwkv_cli.cli.commands.one_generation import Request, read
    from rwkv_cli.cli.prompt import read_prompt

    request = Request(
        template=options.parse_template(template),
        system=options.parse_system(system),
        text=read_prompt(prompt, prompt_file),
        model=model,
        device=device,
        threads=threads,
        max_tokens=0,
        settings=settings.load(),
        reads_only=True,
        state=state,
        save_state=name,
        keep_text=not no_text,
        compact=compact,
        cache=not no_cache,
        force=force,
        quiet=quiet,
    )
    saved = read(request)
    if json or not quiet:
        from rwkv_cli.cli.reports import states

        states.tell(saved.path, saved.saved, as_json=json)


@app.command(cls=Command, rich_help_panel=USE)
@with_sampling
def load(
    name: Existing,
    *,
    prompt: options.Prompt = None,
    prompt_file: options.PromptFile = None,
    template: options.Template = None,
    model: options.Model = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    sampling: SamplingOverrides,
    save_state: options.SaveState = None,
    max_tokens: options.MaxTokens = None,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Continue from a state: answer a prompt, or open a chat.

    The state does not change; --save-state saves the new one. This is rwkv generate --state, and without a prompt
    rwkv chat --state, which have more options.

    Examples:
        # Ask about a text that was read before
        rwkv state load book -p "Who is the hero?"
        # Talk about it
        rwkv state load book
    """
    if prompt is None and prompt_file is None:
        from rwkv_cli.cli.commands.chat import open_chat

        if template or save_state or force or json or max_tokens is not None:
            raise UsageError("without a prompt, a chat opens: for these options use rwkv chat --state")
        open_chat(name, model, device, threads, sampling, quiet)
    from rwkv_cli import settings
    from rwkv_cli.cli.commands.one_generation import Request, run
    from rwkv_cli.cli.prompt import read_prompt

    if force and save_state is None:
        raise UsageError("--force needs --save-state")
    request = Request(
        template=options.parse_template(template),
        text=read_prompt(prompt, prompt_file),
        model=model,
        device=device,
        threads=threads,
        sampling=sampling,
        state=name,
        save_state=save_state,
        max_tokens=options.limit_of(max_tokens),
        settings=settings.load(),
        force=force,
        json=json,
        quiet=quiet,
    )
    raise typer.Exit(run(request))


@app.command("list", cls=Command, rich_help_panel=LOOK)
def list_states(*, json: options.Json = False) -> None:
    """List the named states.

    Examples:
        # With model, length, size and date
        rwkv state list
    """
    from rwkv_cli.cli.reports import states

    rows = states.listed()
    if json:
        ui.write_json(rows)
    elif rows:
        states.show_list(rows)
    else:
        ui.note("no states yet; to make one: rwkv state save NAME --prompt-file FILE")
    if not json:
        states.note_kept_chats()


@app.command(cls=Command, rich_help_panel=LOOK)
def show(
    name: Existing,
    *,
    png: Annotated[
        Path | None,
        typer.Option(
            "--png", metavar="FILE", help="Write the heat map as a PNG.", rich_help_panel=options.OUTPUT
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Describe a state, with a heat map.

    The heat map shows the norm of the memory of every head in every layer.

    Examples:
        # In the terminal
        rwkv state show book
        # As a picture
        rwkv state show book --png book.png
    """
    from rwkv_cli.cli.reports import heat_map, states
    from rwkv_cli.engine.heat_map import norms as norms_of
    from rwkv_cli.sessions import resume

    source = resume.open_state(name)
    norms = norms_of(source.saved.snapshot.state.wkv)
    facts = states.facts(source.path, source.saved)
    if png:
        heat_map.write_png(png, norms, f"{facts['name']}: {facts['tokens']:,} tokens of {facts['model']}")
    if json:
        ui.write_json(facts | {"norms": norms.round(6).tolist()})
        return
    states.show_facts(facts)
    states.show_title("memory")
    heat_map.print_map(norms)


@app.command(cls=Command, rich_help_panel=MANAGE)
def fork(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A saved state.", autocompletion=completion.states)
    ],
    target: Annotated[str, typer.Argument(metavar="DST", help="The name or path of the copy.")],
    *,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Copy a state, to continue from it in two ways.

    Examples:
        # Try another ending
        rwkv state fork story other-ending
    """
    from rwkv_cli.cli.commands import state_files
    from rwkv_cli.cli.reports import states

    copied = state_files.copy(source, target, force=force, new=True)
    states.tell(copied.path, copied.saved, as_json=json)


@app.command(cls=Command, rich_help_panel=MANAGE)
def rename(
    old: Annotated[
        str, typer.Argument(metavar="OLD", help="The name it has.", autocompletion=completion.states)
    ],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The name it gets.")],
) -> None:
    """Rename a state.

    Examples:
        # Names may have spaces
        rwkv state rename book "my book"
    """
    from rwkv_cli.sessions import state_store

    for name in (old, new):
        if state_store.is_path(name):
            raise UsageError(f"{name} is a path: only named states can be renamed")
    state_store.rename(old, new)


@app.command(cls=Command, rich_help_panel=MANAGE)
def rm(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME|FILE", help="The states.", autocompletion=completion.states),
    ],
    *,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask.", rich_help_panel=options.INPUT)
    ] = False,
    json: options.Json = False,
) -> None:
    """Delete states, after asking.

    Examples:
        # Two of them, without being asked
        rwkv state rm --yes book history
    """
    from rwkv_cli.cli.commands import state_files

    removed = state_files.remove(names, yes)
    if json:
        ui.write_json([{"name": name} for name in removed])


@app.command("import", cls=Command, rich_help_panel=MANAGE)
def import_state(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A state file, or a state-tuned .pth (time_state).")
    ],
    name: Name,
    *,
    model: options.Model = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Import a state file or a state-tuned .pth.

    A state-tuned .pth does not say which model it was trained for: name it with --model.

    Examples:
        # A state from another machine
        rwkv state import book.safetensors book
        # A state that was trained
        rwkv state import tuned.pth style -m g1-0.1b
    """
    from rwkv_cli.cli.commands import state_files
    from rwkv_cli.cli.reports import states

    imported = state_files.take_in(file, name, model, force)
    states.tell(imported.path, imported.saved, as_json=json)


@app.command(cls=Command, rich_help_panel=MANAGE)
def export(
    name: Existing,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write, or a folder for it.")],
    *,
    no_text: options.NoText = False,
    compact: options.Compact = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Write a state to a file, for another machine.

    Examples:
        # Small, and without the text that was read
        rwkv state export book book.safetensors --compact --no-text
    """
    from rwkv_cli.cli.commands import state_files
    from rwkv_cli.cli.reports import states

    target = state_files.export_target(name, file)
    written = state_files.copy(name, target, force=force, compact=compact or None, keep_text=not no_text)
    states.tell(written.path, written.saved, as_json=json)


@app.command(cls=Command, rich_help_panel=MANAGE)
def cache(
    action: Annotated[
        Literal["clear"] | None, typer.Argument(metavar="clear", help="Delete everything in the cache.")
    ] = None,
    *,
    json: options.Json = False,
) -> None:
    """Show or clear the cache of long prompts.

    It keeps the states after long prompts, so that the same beginning is read only once: see RWKV_CACHE_SIZE. What
    else is kept on the disk, rwkv cache shows.

    Examples:
        # How large is it?
        rwkv state cache
        # Delete it
        rwkv state cache clear
    """
    from rwkv_cli.reporting import format_size
    from rwkv_cli.sessions import prompt_cache

    if action == "clear":
        removed = prompt_cache.clear()
        if json:
            ui.write_json({"removed_bytes": removed})
        else:
            typer.echo(f"removed {format_size(removed)}")
        return
    count, size = prompt_cache.usage()
    if json:
        folder, limit = str(prompt_cache.folder()), prompt_cache.size_limit()
        ui.write_json({"folder": folder, "states": count, "bytes": size, "limit_bytes": limit})
        return
    ui.table(
        "prompt cache",
        {
            "folder": str(prompt_cache.folder()),
            "states": f"{count:,}",
            "size": f"{format_size(size)} of at most {format_size(prompt_cache.size_limit())} (RWKV_CACHE_SIZE)",
        },
    )
