"""The agent of one device: keeps its models up to date, tries new releases, and serves local applications.

`Agent` runs one in this process; `Endpoint` asks one that runs on a folder. `main` is the command `sprat-agent`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sprat_client.agent.endpoint import Endpoint
    from sprat_client.agent.loop import Agent
    from sprat_client.agent.settings import AgentSettings

__all__ = ["Agent", "AgentSettings", "Endpoint", "main"]


def main() -> int:
    """Run `sprat-agent` with the arguments of this process; return its exit code."""
    from sprat_client.agent.commands import main as run_command  # noqa: PLC0415  # `import sprat_client.agent` is cheap

    return run_command()


def __getattr__(name: str) -> Any:
    """Load `Agent`, `AgentSettings` and `Endpoint` when asked for: the rebuild's process needs none of them."""
    from importlib import import_module  # noqa: PLC0415

    places = {"Agent": "loop", "AgentSettings": "settings", "Endpoint": "endpoint"}
    if name not in places:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{places[name]}"), name)
