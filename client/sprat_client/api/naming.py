"""Find the one thing that a person means by the start of its id."""

from collections.abc import Sequence

from sprat_shared.errors import InvalidInput, NotFound

_FULL_ID_LENGTH = 36
_SHOWN = 4


def is_full_id(text: str) -> bool:
    """Tell whether `text` has the form of a whole UUID."""
    return len(text) == _FULL_ID_LENGTH and text.count("-") == 4  # noqa: PLR2004 - a UUID has four hyphens


def unique_match(kind: str, wanted: str, ids: Sequence[str], *, prefix: str = "") -> str:
    """Return the only id of `ids` that starts with `wanted`, with or without `prefix`; hyphens may be left out.

    UUIDv7 ids made close together share their start, so their unique end is accepted too.

    Raises:
        NotFound: no id matches.
        InvalidInput: several do.
    """
    bare = wanted.removeprefix(prefix).replace("-", "")
    found = [one for one in ids if bare and one.removeprefix(prefix).replace("-", "").startswith(bare)]
    if len(found) != 1:
        ends = [one for one in ids if bare and one.replace("-", "").endswith(bare)]
        found = ends if len(ends) == 1 else found
    if not found:
        raise NotFound(f"there is no {kind} {wanted!r}; see: sprat {kind} list")
    if len(found) > 1:
        some = ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
        raise InvalidInput(f"{wanted!r} stands for {len(found)} {kind}s ({some}); write more of it")
    return found[0]
