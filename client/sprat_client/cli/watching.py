"""Progress on stderr: a bar on a terminal; elsewhere a line for each step, and at most one in five seconds within."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from sprat_client.api import JobView, RolloutView, SpratClient

_LINE_EVERY_S: Final = 5.0
_INTERRUPTED: Final = 130  # as shells say it: 128 + SIGINT

NoWait = Annotated[bool, typer.Option("--no-wait", help="Print the job and end, without waiting for it.")]


@contextmanager
def bar(what: str) -> Iterator[Callable[[float | None, str], None]]:
    """Give a function that shows a fraction (None: not known) and a word of what is done."""
    if not sys.stderr.isatty():
        said: list[tuple[str, float]] = []

        def line(_fraction: float | None, message: str) -> None:
            subject, now = message.partition(":")[0], time.monotonic()
            if not said or said[-1][0] != subject or now - said[-1][1] >= _LINE_EVERY_S:
                said[:] = [(subject, now)]
                typer.echo(f"{what}: {message}", err=True)

        yield line
        return
    from rich.console import Console  # noqa: PLC0415 - only where a terminal shows it
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None, note="")

        def update(fraction: float | None, message: str) -> None:
            progress.update(task, total=None if fraction is None else 1.0, completed=fraction or 0.0, note=message)

        yield update


@contextmanager
def leaves_going(what: str, see: str) -> Iterator[None]:
    """Let Ctrl-C end the watching, and say that what is watched goes on."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"no longer watched; {what} goes on: {see}", err=True)
        raise typer.Exit(_INTERRUPTED) from None


def wait_for_job(client: "SpratClient", job: "JobView") -> "JobView":
    """Return the job once it has succeeded, with progress on stderr.

    Raises:
        JobFailed: it failed; the message is the worker's.
        Conflict: it was cancelled.
    """
    with bar(job["kind"]) as show:

        def progress(now: "JobView") -> None:
            show(*progress_of(now))

        with leaves_going(f"job {job['id']}", f"sprat job watch {job['id']}"):
            return client.jobs.wait(job["id"], progress)


def progress_of(job: "JobView") -> tuple[float | None, str]:
    """Return how far a job is (None: not known) and the words for it."""
    progress = job["progress"]
    words = ": ".join(part for part in (progress["step"], progress["message"]) if part)
    return (progress["fraction"] or None), words or job["state"]


def finish(client: "SpratClient", job: "JobView", *, no_wait: bool) -> "JobView":
    """Return the job as it was answered, or once it has succeeded."""
    if no_wait:
        typer.echo(f"the server works on it; see: sprat job watch {job['id']}", err=True)
        return job
    return wait_for_job(client, job)


def upload(client: "SpratClient", source: Path) -> str:
    """Upload a file with progress on stderr; returns its digest."""
    with bar(f"upload {source.name}") as show:

        def progress(done: int, total: int) -> None:
            show(done / total if total else None, f"sending: {done:,} of {total:,} bytes")

        return client.upload_blob(source, progress)["digest"]


def rollout_line(rollout: "RolloutView") -> str:
    """Return a rollout's state in one line."""
    waves = ", ".join(
        f"wave {wave['ordinal']} ({wave['reach']}) {wave['state']}"
        + (f" {wave['states'].get('committed', 0)}/{wave['devices']}" * bool(wave["devices"]))
        for wave in rollout["waves"]
    )
    reason = f"  ({rollout['reason']})" if rollout["reason"] else ""
    reason += f"; waits for {', '.join(rollout['waits_for'])}" if rollout["waits_for"] else ""
    reason += f"; {rollout['controls']} held back" if rollout["controls"] else ""
    ahead = f", fetched ahead by {rollout['ready']}/{rollout['prefetched']}" if rollout["prefetched"] else ""
    return f"{rollout['model']}@{rollout['release']} {rollout['state']}{ahead}; {waves}{reason}"
