"""The command `trefoil`: its groups of commands, and one line with an exit status for whatever goes wrong.

0 done, 1 the server or the job says no, 2 the command line is wrong, 130 interrupted.
"""

import sys
from typing import Annotated

import typer
from pydantic import ValidationError
from typer.exceptions import Abort, TyperException

from trefoil import __version__
from trefoil.cli import generation, jobs, measuring, models, planning, serve, tasks, training
from trefoil.errors import InvalidSetting
from trefoil_client import Refused, TrefoilError

app = typer.Typer(name="trefoil", add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False)
for group in (serve, generation, tasks, training, models, measuring):
    app.add_typer(group.app)
app.add_typer(jobs.app, name="jobs")
app.add_typer(planning.app, name="plan")

EXIT_REFUSED = 1
EXIT_USAGE = 2


def tell_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=tell_version)
    ] = False,
) -> None:
    """One server for every transformer family."""


def main() -> None:
    """Run the command line; errors are one line."""
    try:
        status = app(standalone_mode=False)
    except InvalidSetting as error:
        sys.exit(_complain(str(error), EXIT_USAGE))
    except TyperException as error:
        sys.exit(_complain(_usage(error), EXIT_USAGE))
    except Refused as error:
        sys.exit(_complain(error.message, EXIT_REFUSED))
    except TrefoilError as error:
        sys.exit(_complain(str(error), EXIT_REFUSED))
    except (Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _usage(error: TyperException) -> str:
    """What is wrong with the command line; a wrong value stands beside its flag, its variable and what is allowed."""
    if isinstance(error, typer.BadParameter) and error.param and isinstance(error.__cause__, ValidationError):
        problem = error.__cause__.errors()[0]
        allowed = problem["msg"].removeprefix("Value error, ")
        variable = f" (or {error.param.envvar})" if error.param.envvar else ""
        return f"{error.param.opts[0]}{variable} {problem['input']}: {allowed}"
    told = " ".join(error.format_message().split())
    return told or "name one of the commands above"  # Typer prints them and has nothing to say


def _complain(message: str, status: int) -> int:
    print(f"trefoil: {message}", file=sys.stderr)
    return status
