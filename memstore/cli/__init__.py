"""The command line: ``memstore COMMAND STORE ...``. stdout carries results, stderr the rest.

Commands live in modules of their own, imported when they are called: ``memstore top`` must not
wait for what only ``memstore train`` needs.
"""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module

import click

from memstore import __version__
from memstore.errors import MemstoreError

#: Command -> the module that defines it, in the order of ``--help``.
COMMANDS = {
    "demo": "demo",
    "init": "write",
    "insert": "write",
    "import": "importing",
    "search": "ask",
    "top": "ask",
    "composite": "ask",
    "similar": "ask",
    "neuron": "look",
    "labels": "labels",
    "lens": "lens",
    "show": "look",
    "explain": "look",
    "diff": "look",
    "audit": "audit",
    "list": "look",
    "stats": "look",
    "delete": "write",
    "export": "care",
    "check": "care",
    "optimize": "care",
    "reencode": "care",
    "backup": "care",
    "verify": "care",
    "restore": "care",
    "recover": "care",
    "upgrade": "care",
    "generate": "generate",
    "embed": "embed",
    "train": "lab",
    "evaluate": "evaluation",
    "convert": "convert",
    "experiment": "experiments",
    "completion": "completion",
}
INTERRUPTED = 130


class Commands(click.Group):
    """Finds a command's module by its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in reading order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command called ``cmd_name``."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"memstore.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name + "_command")
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="memstore")
def cli() -> None:
    """A memory database whose memories can be read.

    STORE is the path of a store's file, such as diary.db.
    """


def main() -> None:
    """Run the command line; a mistake is one line on stderr and a non-zero exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a letter gets its escape, not a traceback.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(standalone_mode=False, prog_name="memstore")
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except MemstoreError as error:
        click.echo(f"memstore: {' '.join(str(error).split())}", err=True)
        code = 1
    except (click.Abort, KeyboardInterrupt):
        click.echo("memstore: stopped", err=True)
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would complain again while exiting.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        click.echo(
            f"memstore: {error.strerror or error}: {error.filename or ''}".rstrip(": "), err=True
        )
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
