"""Starts agents as processes of their own, quickly: everything is imported once, then each agent is a fork.

python zygote.py LOG      reads one JSON list of arguments of `sprat-agent` a line, answers with the process id
"""

import json
import os
import signal
import sys

import numpy  # noqa: F401, ICN001  # loaded before the fork, like all below
import onnxruntime  # noqa: F401
import uvicorn  # noqa: F401

from sprat_client.agent.commands import main


def become_agent(arguments: list[str], log: str) -> None:
    """Run one agent in this (forked) process, and end it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 99
    try:
        code = main(arguments)
    finally:
        os._exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended agents are not waited for
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            become_agent(json.loads(line), sys.argv[1])
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
