"""The command line: `raftplug COMMAND`, one module a command, loaded when it is used.

Here, once, every error becomes one line on stderr and an exit code: 2 where what was asked for cannot be, 1 where it
did not happen, 130 on Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import click

from raftplug.cli import output
from raftplug.errors import InvalidArgument, QueryFailed, RaftplugError, TransitionFailed
from raftplug.foreign import described, text_of

INTERRUPTED: Final = 130

# The short help stands here, so that `raftplug --help` imports no command; a test compares it with theirs.
_SHORT_HELP: Final = {
    "demo": "Replicate a key-value store, kill things, lose nothing.",
    "node": "Run a node until it is told to stop.",
    "propose": "Propose a transition, or many, and print the result.",
    "read": "Ask a state machine and print the answer.",
    "status": "Show leader, quorum and nodes of a group.",
    "members": "Show and change who is a member of a group.",
    "snapshot": "Have nodes make a snapshot now.",
    "backup": "Write the whole of a group into a file.",
    "restore": "Make a node's data directory from such a file.",
    "plugins": "List the plugins, what each gives, and what is wrong with it.",
    "bench": "Measure throughput and latency.",
    "sim": "Run the cluster in a simulator, with faults.",
    "doctor": "Check the Redis, the disk and the core.",
}


class _Commands(click.Group):
    """The built-in commands by name, then those of plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*built_in_commands(), *sorted(_given())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in built_in_commands():  # First, so that plugins are not even loaded for a built-in command.
            command: click.Command = import_module(f"raftplug.cli.{cmd_name}").command
            return command
        return _given().get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = get_close_matches(name, self.list_commands(ctx), 1)
            ctx.fail(f"No such command {name!r}" + (f": did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _SHORT_HELP[name]) for name in built_in_commands()])
        given = _given()
        if given:
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(name, _help_of(command)) for name, command in sorted(given.items())])
        broken = _problems()
        if broken:
            formatter.write_paragraph()
            formatter.write_text(f"{broken}: see `raftplug plugins`.")

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _one_line_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _one_line_errors():
            value = super().invoke(ctx)
            sys.stdout.flush()  # Here, where a closed pipe is still handled, and not at the interpreter's exit.
            return value


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn errors into a line and an exit code.  A broken pipe is left to click, which ends quietly."""
    try:
        yield
    except RaftplugError as error:
        text = described(error)
        is_machines = isinstance(error, TransitionFailed | QueryFailed)  # What a state machine said is not changed.
        output.error(text if is_machines else output.with_options(text))
        raise click.exceptions.Exit(2 if isinstance(error, InvalidArgument) else 1) from None
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "raftplug"
        output.error(f"{error.format_message().rstrip('.')} (see `{path} --help`)")
        raise click.exceptions.Exit(2) from None
    except click.ClickException as error:
        output.error(error.format_message())
        raise click.exceptions.Exit(error.exit_code) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        output.error(text_of(error))
        raise click.exceptions.Exit(1) from None
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED) from None


def built_in_commands() -> list[str]:
    """The names of the commands that come with raftplug."""
    return [name for name in _SHORT_HELP if find_spec(f"raftplug.cli.{name}") is not None]


def _given() -> dict[str, click.Command]:
    from raftplug.plugins import default

    return default().commands(_SHORT_HELP)


def _problems() -> str:
    from raftplug.plugins import default

    count = len(default().problems())
    return "" if not count else "1 problem with plugins" if count == 1 else f"{count} problems with plugins"


def _help_of(command: click.Command) -> str:
    try:
        return output.clean(command.get_short_help_str(80))
    except Exception:
        return ""


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from raftplug.version import VERSION

        click.echo(f"raftplug {VERSION}")
        ctx.exit()


@click.group(
    cls=_Commands, name="raftplug", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Strongly consistent replicated state for Python programs that already have a Redis.

    \b
    Exit codes: 0 what was asked for happened; 1 it did not; 2 it was asked for in a wrong way; 130 Ctrl-C.
    """
