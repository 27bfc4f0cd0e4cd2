"""What devices have loaded while one plan takes the place of another. Pure."""

from collections.abc import Mapping

Held = Mapping[str, frozenset[str]]
"""Release -> devices that have it loaded."""


def lacking(memory: Mapping[str, int], sizes: Mapping[str, int], before: Held, after: Held) -> dict[str, int]:
    """Return the bytes that devices lack for what they hold before and after, both at once; only those that lack any.

    Args:
        memory: device -> bytes; devices that are left out have enough.
        sizes: release -> bytes while it is loaded.
        before: what is held,
        after: and then.
    """
    taken = dict.fromkeys(memory, 0)
    for name in {*before, *after}:
        for host in before.get(name, frozenset()) | after.get(name, frozenset()):
            if host in taken:
                taken[host] += sizes[name]
    return {host: nbytes - memory[host] for host, nbytes in taken.items() if nbytes > memory[host]}
