"""`rwkv state`: what a model knows of a text, kept in a small file, to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rwkv_cli.cli import completion, options
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import UsageError

app = typer.Typer(
    name="state",
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A name of your own, or a path.")]
Existing = Annotated[
    str, typer.Argument(metavar="NAME|FILE", help="A saved state.", autocompletion=completion.states)
]
Listed = Annotated[bool, typer.Option("--json", help="Write JSON.")]


@app.callback(invoke_without_command=True)
def state(context: typer.Context) -> None:
    """Keep what a model has read, and go on from there."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def save(
    name: Name,
    prompt: options.Prompt = None,
    prompt_file: options.PromptFile = None,
    state: options.State = None,
    model: options.Model = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The prompt format to lay it out in.", show_default="none: it is a document"
        ),
    ] = None,
    system: options.System = None,
    no_text: options.NoText = False,
    compact: options.Compact = False,
    force: options.Force = False,
    no_cache: options.NoCache = False,
    quiet: options.Quiet = False,
) -> None:
    """Read a text once, and keep what the model then knows of it.

    The text comes from --prompt, --prompt-file or standard input, and is read as a document, unless --template lays it
    out. With --state, it follows what was read there.
    """
    from rwkv_cli.cli.commands.one_generation import Request, read
    from rwkv_cli.cli.prompt import checked_text, read_prompt
    from rwkv_cli.text.template_file import open_template

    request = Request(
        text=read_prompt(prompt, prompt_file),
        model=model,
        device=device,
        threads=threads,
        max_tokens=0,
        template=open_template(template) if template else None,
        reads_only=True,
        system=None if system is None else checked_text(system, "system text"),
        state=state,
        save_state=name,
        keep_text=not no_text,
        compact=compact,
        force=force,
        cache=not no_cache,
        quiet=quiet,
    )
    told = read(request)
    if not quiet:
        typer.echo(ui.printable(told))


@app.command()
def load(
    name: Existing,
    prompt: options.Prompt = None,
    prompt_file: options.PromptFile = None,
    model: options.Model = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    max_tokens: options.MaxTokens = 256,
    template: options.Template = None,
    save_state: options.SaveState = None,
    force: options.Force = False,
    seed: options.Seed = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Go on from a state: answer a prompt, or open a chat.

    The state stays as it is; --save-state keeps the new one. For all options of a generation: rwkv generate --state.
    """
    if prompt is None and prompt_file is None:
        if template or save_state or force or json or seed is not None or max_tokens != 256:
            raise UsageError("without a prompt a chat opens: for its options use rwkv chat --state")
        from rwkv_cli.cli.commands.chat import open_chat

        raise typer.Exit(open_chat(name, model, device, threads))
    from rwkv_cli.cli.commands.generate import generate

    generate(
        prompt=prompt,
        prompt_file=prompt_file,
        model=model,
        device=device,
        threads=threads,
        max_tokens=max_tokens,
        template=template,
        state=name,
        save_state=save_state,
        force=force,
        seed=seed,
        json=json,
        quiet=quiet,
    )


@app.command("list")
def list_states(json: Listed = False) -> None:
    """List the states that have a name."""
    from rwkv_cli.cli.reports import states

    rows = states.listed()
    if json:
        _write_json(rows)
    elif rows:
        states.show_list(rows)
    else:
        ui.note("there are no states yet; to make one: rwkv state save NAME --prompt-file FILE")


@app.command()
def show(
    name: Existing,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="Write the picture of the state as a PNG.")
    ] = None,
    json: Listed = False,
) -> None:
    """Describe a state, with a picture of it.

    The picture shows how much each head of each layer holds: the norm of its memory.
    """
    from rwkv_cli.cli.reports import heat_map, states
    from rwkv_cli.sessions import resume

    source = resume.open_state(name)
    norms = heat_map.norms(source.saved.snapshot.state)
    facts = states.facts(source.path, source.saved)
    if png:
        heat_map.write_png(png, norms, f"{facts['name']}: {facts['tokens']:,} tokens of {facts['model']}")
    if json:
        _write_json(facts | {"norms": norms.round(6).tolist()})
        return
    states.show_facts(facts)
    states.show_title("memory")
    heat_map.print_map(norms)


@app.command()
def fork(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A saved state.", autocompletion=completion.states)
    ],
    target: Annotated[str, typer.Argument(metavar="DST", help="The name or path of the copy.")],
    force: options.Force = False,
) -> None:
    """Copy a state, to go on from the same place in two ways."""
    from rwkv_cli.cli.commands import state_files

    typer.echo(ui.printable(state_files.copy(source, target, force=force, new=True)))


@app.command()
def rename(
    old: Annotated[str, typer.Argument(metavar="OLD", help="A name.", autocompletion=completion.states)],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Another name.")],
) -> None:
    """Give a state another name."""
    from rwkv_cli.sessions import state_store

    for name in (old, new):
        if state_store.is_path(name):
            raise UsageError(f"{name} is a path: only states with a name can be renamed")
    state_store.rename(old, new)


@app.command()
def rm(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME|FILE...", help="States to remove.", autocompletion=completion.states),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove states, after asking."""
    from rwkv_cli.cli.commands import state_files

    state_files.remove(names, yes)


@app.command("import")
def import_state(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A state file, or a trained state (time_state, .pth).")
    ],
    name: Name,
    model: options.Model = None,
    force: options.Force = False,
) -> None:
    """Take in a state from a file, also a trained one.

    What state tuning trains (a .pth with time_state) does not say which model it is for: name it with --model.
    """
    from rwkv_cli.cli.commands import state_files

    typer.echo(ui.printable(state_files.take_in(file, name, model, force)))


@app.command()
def export(
    name: Existing,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write, or a folder.")],
    no_text: options.NoText = False,
    compact: options.Compact = False,
    force: options.Force = False,
) -> None:
    """Write a state to a file, for another machine."""
    from rwkv_cli.cli.commands import state_files

    target = state_files.export_target(name, file)
    typer.echo(
        ui.printable(
            state_files.copy(name, target, force=force, compact=compact or None, keep_text=not no_text)
        )
    )


@app.command()
def cache(
    action: Annotated[
        Literal["clear"] | None, typer.Argument(metavar="[clear]", help="Remove what is kept.")
    ] = None,
) -> None:
    """Show what is kept of long prompts, or clear it."""
    from rwkv_cli.reporting import format_size
    from rwkv_cli.sessions import prompt_cache

    if action == "clear":
        typer.echo(f"removed {format_size(prompt_cache.clear())}")
        return
    count, size = prompt_cache.usage()
    ui.table(
        "prompt cache",
        {
            "folder": str(prompt_cache.folder()),
            "states": f"{count:,}",
            "size": f"{format_size(size)} of at most {format_size(prompt_cache.size_limit())} (RWKV_CACHE_SIZE)",
        },
    )


def _write_json(value: object) -> None:
    from json import dumps

    typer.echo(dumps(value, ensure_ascii=False, indent=2))
