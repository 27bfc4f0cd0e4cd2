"""`sprat apply`: bring about what a file says."""

from pathlib import Path
from typing import Annotated

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import emit
from sprat_client.cli.rollout_files import RolloutFile, read_rollouts
from sprat_client.cli.rollout_plans import body_of, plan_text
from sprat_client.cli.watching import rollout_line
from sprat_shared.errors import InvalidInput, SpratError

File = Annotated[
    list[Path], typer.Option("--file", "-f", help="YAML or JSON, one rollout a document; may be repeated.")
]


def apply(
    ctx: typer.Context,
    *,
    file: File,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Make the rollouts of a file, unless they are there already.

    A rollout is known by its name, or without one by its content. A draft that differs is replaced; one that has
    started is not changed. `start: true` starts it too, unless it waits for approvals or for its time.

    Example: sprat apply -f rollout.yaml --dry-run
    """
    rollouts = [one for path in file for one in read_rollouts(path)]
    with connect(ctx) as client:
        for one in rollouts:
            body = body_of(client, one.wanted)
            try:
                if dry_run:
                    plan = client.rollouts.plan(body)
                    emit(plan, as_json=json_, text=f"{one.title}:\n{plan_text(plan)}")
                else:
                    done = client.rollouts.apply(body, start=one.start)
                    line = f"{one.title}: {done['action']}  {done['rollout']['id']}  {rollout_line(done['rollout'])}"
                    emit(done, as_json=json_, text=line)
            except SpratError as bad:
                raise located(one, bad) from bad


def located(file: RolloutFile, bad: SpratError) -> SpratError:
    """Return an error with the line of the file that it is about."""
    return type(bad)(file.located(bad), code=bad.code) if isinstance(bad, InvalidInput) else bad
