"""Update files under a coverage-guided fuzzer, by hand: atheris (libFuzzer for Python), in an environment of its own.

    python3.11 -m venv .bench/atheris && .bench/atheris/bin/pip install atheris numpy zstandard
    PYTHONPATH=shared .bench/atheris/bin/python tests/crash/fuzz_updates.py -max_total_time=300
An input is a change of one of `update_mutations.samples`: its first byte chooses the sample, the rest is either the
file's bytes or the seed of a change of what they say. Anything but a named refusal or the promised weights stops it.
"""

import random
import sys

import atheris

with atheris.instrument_imports(include=["sprat_shared"]):
    import update_mutations
    from update_mutations import Measured

GOODS = [good for good in update_mutations.samples() if good.log2_lanes == 0]  # files of many lanes take long
HEADER_BYTES = 14


def one_input(data: bytes) -> None:
    """Apply one input."""
    if len(data) > 1:
        good = GOODS[data[0] % len(GOODS)]
        if data[0] >> 7:
            file = update_mutations.mutated(good, random.Random(data[1:]))
        else:
            file = good.data()[:HEADER_BYTES] + data[1:]
        update_mutations.attempt(good, file, Measured())


def changed(data: bytes, max_size: int, seed: int) -> bytes:
    """Change an input: half the time to the bytes of a changed sample, from which the fuzzer goes on."""
    chance = random.Random(seed)
    if chance.random() < 0.5:
        return atheris.Mutate(data, max_size)
    number = chance.randrange(len(GOODS))
    return (bytes([number]) + update_mutations.mutated(GOODS[number], chance)[HEADER_BYTES:])[:max_size]


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input, custom_mutator=changed)
    atheris.Fuzz()
