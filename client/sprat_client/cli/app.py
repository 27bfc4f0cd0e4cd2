"""The tree of commands. Nothing heavy is imported before a command runs: `sprat delta apply` needs its memory."""

import importlib
import importlib.util
import json
import os
import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from sprat_client.cli import (
    access,
    apply,
    audit,
    datasets,
    devices,
    doctor,
    drift,
    groups,
    jobs,
    keys,
    models,
    offline,
    placements,
    policies,
    projects,
    releases,
    reports,
    rollout_moves,
    rollouts,
    sharing,
    simulate,
    sites,
    tasks,
    webhooks,
)
from sprat_client.cli.invocation import Invocation
from sprat_shared import errors

_EXIT_CODES = (
    "\b\nExit codes:\n  0  done\n  1  failed for another reason, such as a job or rollout that failed\n"
    "  2  the command line is not understood\n"
    + "\n".join(
        f" {kind.exit_code}  {(kind.__doc__ or '').splitlines()[0].rstrip('.')}"
        for kind in sorted(errors.SpratError.__subclasses__(), key=lambda kind: kind.exit_code)
        if kind.__module__ == errors.__name__
    )
    + "\n 78  the extra 'cli' is not installed\n130  interrupted; a job or rollout that was watched goes on"
    "\n\n\b\nResults go to stdout, progress and errors to stderr.\n"
    "With --json every result is one JSON object a line, and so is an error."
    "\n\nExample: sprat login --server http://127.0.0.1:8470 && sprat model list"
)

app = typer.Typer(
    name="sprat",
    help="Keep the neural networks of an edge fleet up to date, in kilobytes.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(models.app, name="model")
app.add_typer(policies.app, name="policy")
app.add_typer(drift.app, name="drift")
app.add_typer(sharing.app, name="sharing")
app.add_typer(placements.app, name="placement")
app.add_typer(tasks.app, name="task")
app.add_typer(sites.app, name="site")
app.add_typer(datasets.app, name="dataset")
app.add_typer(releases.app, name="release")
app.command("retrain")(releases.retrain)
app.add_typer(jobs.app, name="job")
rollout_moves.add_to(rollouts.app)
app.add_typer(rollouts.app, name="rollout")
app.command("apply")(apply.apply)
app.add_typer(offline.app, name="bundle")
app.add_typer(devices.app, name="device")
app.add_typer(groups.app, name="group")
app.add_typer(devices.enrolment_app, name="enrolment-token")
app.add_typer(projects.app, name="project")
app.add_typer(reports.app, name="report")
app.add_typer(access.app, name="token")
app.add_typer(audit.app, name="audit")
app.add_typer(keys.app, name="keys")
app.add_typer(simulate.app, name="simulate")
app.add_typer(webhooks.app, name="webhook")
app.command("events")(webhooks.events)
app.command("doctor")(doctor.doctor)
app.command("login")(access.login)
if importlib.util.find_spec("sprat_client.cli.delta") is not None:
    app.add_typer(importlib.import_module("sprat_client.cli.delta").app, name="delta")


def _say_version(wanted: bool) -> None:  # noqa: FBT001 - the shape of typer's callbacks
    if wanted:
        typer.echo(f"sprat {version('sprat')}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    *,
    server: Annotated[
        str | None, typer.Option(envvar="SPRAT_SERVER", help="The server, http(s)://host:port.", show_default=False)
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="SPRAT_TOKEN",
            help="Your token. Other users of this machine can see it in the list of processes:"
            " prefer SPRAT_TOKEN or sprat login.",
            show_default=False,
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            envvar="SPRAT_PROJECT",
            help="The project to act in, for a token of the whole server.  [default: the profile's, else default]",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            envvar="SPRAT_PROFILE", help="What `sprat login --profile` kept.  [default: default]", show_default=False
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            envvar="SPRAT_INSECURE",
            help="Send the token over plain http to other machines, where the link is protected otherwise.",
        ),
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Keep the neural networks of an edge fleet up to date, in kilobytes."""
    invocation = ctx.ensure_object(Invocation)
    invocation.server, invocation.token, invocation.insecure = server, token, insecure
    invocation.project, invocation.profile = project, profile


def run() -> NoReturn:
    """Run the command of `sys.argv` and end the process with its exit code."""
    invocation = Invocation()
    try:
        app(obj=invocation, prog_name="sprat")
    except errors.SpratError as error:
        if invocation.as_json or "--json" in sys.argv:
            typer.echo(json.dumps({"error": {"code": error.code, "detail": str(error)}}), err=True)
        else:
            typer.echo(f"sprat: {error} [{error.code}]", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `sprat … | head`: not worth a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(0)
