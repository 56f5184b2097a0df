"""The command itself: its sub-commands by name, how errors are told, what is answered without importing anything large.

Help, completion and misspelt names come from a list of all options (:mod:`nervure.cli.surface`). The sub-commands
themselves are imported when one of them is run.
"""

import shlex
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from nervure.cli.surface import listed_commands
from nervure.core.markup import listing, printable
from nervure.core.version import __version__
from nervure.errors import NervureError

HELP = ("--help", "-h")


class CliError(click.ClickException):
    """An error of ours, told in one line; the exit code is 2."""

    exit_code = 2


WORDS = "nervure.words"


def tell(text: str) -> None:
    """Print lines of text, whose names do nothing to a terminal."""
    click.echo(listing(text.split("\n")))


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"Warning: {printable(' '.join(str(message).split()))}", err=True)


def command_line() -> str:
    """The command that is running, as it can be typed again."""
    return shlex.join(["nervure", *click.get_current_context().meta[WORDS]])


class Unforeseen(click.ClickException):
    """An error that nervure does not raise on purpose, told in one line; the exit code is 1."""


class Once(click.Command):
    """A command whose options are given once, unless they may be given several times: none is passed over."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse what is given twice."""
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        for option in order:
            if isinstance(option, click.Option) and not (option.multiple or option.is_flag) and order.count(option) > 1:
                raise click.UsageError(f"{option.opts[-1]} is given twice; give it once.", ctx)
        return super().parse_args(ctx, args)


class CommandGroup(click.Group):
    """A group that tells errors in one line; with ``--debug`` they come with their traceback.

    What is written down of its commands stands for them until one is run.
    """

    command_class = Once

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the arrows, not of the alphabet."""
        return list(listed_commands())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; for completion, or before it is imported, what stands for it."""
        listed = listed_commands().get(cmd_name)
        return listed if ctx.resilient_parsing else self.commands.get(cmd_name, listed)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is to run; it is imported where more is asked than its help, and its options are there."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is None or ctx.resilient_parsing or (len(rest) == 1 and rest[0] in HELP):
            return name, command, rest
        with click.Context(command, parent=ctx, info_name=name) as inner:
            command.make_parser(inner).parse_args(list(rest))
        self.load()
        return name, self.commands[name or ""], rest

    def load(self) -> None:
        """Import the commands themselves."""
        import_module("nervure.cli.commands")

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        """Keep the words of the command, which parsing uses up."""
        words = tuple(args)
        context = super().make_context(info_name, args, *rest, **extra)
        context.meta[WORDS] = words
        return context

    def invoke(self, ctx: click.Context) -> Any:
        """Run the sub-command."""
        try:
            with warnings.catch_warnings(), _ended_by_signals():
                warnings.showwarning = _warn
                return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            click.echo("stopped", err=True)
            ctx.exit(128 + (interrupt.args or (signal.SIGINT,))[0])
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if isinstance(error.__cause__, BrokenPipeError):
                # Whoever read the output has enough: no error.
                raise error.__cause__ from None
            if ctx.params.get("debug"):
                raise
            raise _respond(error) from error


def _respond(error: Exception) -> click.ClickException:
    """An error in one line."""
    if isinstance(error, NervureError | OSError):
        return CliError(printable(" ".join(str(error).split())))
    reason = printable((str(error).splitlines() or [""])[0])
    return Unforeseen(
        f"{type(error).__name__}: {reason}. That was not foreseen; nervure --debug ... tells where it is."
    )


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Inside, being asked to end (SIGTERM) is told as Ctrl-C is: locks and drafts go, what is done is kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with:  nervure run examples/demo.toml --folder runs/demo",
)
@click.version_option(__version__, prog_name="nervure")
@click.option("--debug", is_flag=True, help="Show where an error comes from.")
def main(debug: bool) -> None:
    """Make PyTorch networks smaller and faster by their connectivity.

    One sub-command per arrow: trace -> measure -> score -> plan -> apply -> train -> evaluate -> report; `run` takes
    them all.
    """
