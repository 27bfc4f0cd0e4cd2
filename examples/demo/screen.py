"""What one sees of the demo: numbered chapters, the commands as they are run, figures, a table at the end."""

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.table import Table

from demo.report import Report

_WIDTH: Final = 110


class Screen:
    """Prints to stdout, with colour on a terminal."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        if not self._console.is_terminal:
            self._console.width = _WIDTH
        self._begun = time.monotonic()
        self._chapter = 0

    @property
    def seconds(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._begun

    def chapter(self, title: str) -> None:
        """Begin a chapter."""
        self._chapter += 1
        self._console.print(f"\n[bold]{self._chapter}  {title}[/bold]  [dim]{self.seconds:.0f} s[/dim]")

    def command(self, words: Sequence[str]) -> None:
        """Show a command as one would type it."""
        self._console.print(f"   [cyan]$ {shlex.join(words)}[/cyan]")

    def say(self, text: str) -> None:
        """Say something."""
        self._console.print(f"   {text}")

    def good(self, text: str) -> None:
        """Say something that was hoped for."""
        self._console.print(f"   [green]✓[/green] {text}")

    def bad(self, text: str) -> None:
        """Say what went wrong."""
        self._console.print(f"[red]✗ {text}[/red]", markup=True)

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Show that something takes a while."""
        if self._console.is_terminal:
            with self._console.status(text):
                yield
        else:
            self.say(f"{text} ...")
            yield

    def result(self, report: Report) -> None:
        """Print the tables at the end."""
        devices = Table(title="\nThe fleet at the end", title_justify="left", title_style="bold")
        for heading in ("device", "link", "accuracy before", "after", "serves", "is the registry's"):
            devices.add_column(heading)
        for one in report.devices:
            devices.add_row(
                one.name,
                one.link,
                f"{one.accuracy_before:.1%}",
                f"{one.accuracy_after:.1%}",
                one.digest.removeprefix("sha256:")[:12],
                "yes" if one.digest_matches else "NO",
            )
        self._console.print(devices)
        share = report.update_bytes / report.model_bytes
        figures = Table(show_header=False, title="\nThe update", title_justify="left", title_style="bold")
        figures.add_row("model", f"{report.model_bytes:,} bytes")
        figures.add_row("update", f"{report.update_bytes:,} bytes: {share:.2%} of the model")
        figures.add_row("test accuracy, base on drifted inputs", f"{report.accuracy_base:.2%}")
        figures.add_row("test accuracy, full retrain", f"{report.accuracy_retrained:.2%}")
        figures.add_row("test accuracy, released", f"{report.accuracy_released:.2%}")
        figures.add_row("share of the retrain's gain that is kept", f"{report.recovered_gain:.3f}")
        figures.add_row("bad release", f"refused; devices exposed: {report.bad_release.devices_exposed}")
        figures.add_row("time", f"{report.seconds:.0f} s")
        self._console.print(figures)
