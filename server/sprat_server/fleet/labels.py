"""Labels: what operators say of a device, a few short texts by name. Callers own the transaction."""

import re
from collections.abc import Mapping
from typing import Final

from sprat_server.fleet.models import Device
from sprat_shared.errors import InvalidInput

MOST_LABELS: Final = 32
MOST_VALUE: Final = 200
_KEY: Final = re.compile(r"[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?")


def changed(labels: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return labels after changes (RFC 7396: None removes); removing what is not there changes nothing.

    Raises:
        InvalidInput: a key or a value cannot be one, or the labels would be too many.
    """
    for key, value in changes.items():
        if not _KEY.fullmatch(key):
            raise InvalidInput(
                f"label {key!r:.80}: a key has 1 to 63 of a-z, 0-9 and, inside, '.', '_', '/' and '-'",
                code="label.bad",
            )
        if value is not None and not (0 < len(value) <= MOST_VALUE and value.isprintable()):
            raise InvalidInput(
                f"label {key}: a value has 1 to {MOST_VALUE} printable characters, not {value!r:.80}; "
                f"`{key}-` removes the label",
                code="label.bad",
            )
    after = {key: value for key, value in {**labels, **changes}.items() if value is not None}
    if len(after) > MOST_LABELS:
        raise InvalidInput(f"a device has at most {MOST_LABELS} labels, not {len(after)}", code="label.too-many")
    return dict(sorted(after.items()))


def change(device: Device, changes: Mapping[str, str | None]) -> dict[str, str]:
    """Change the labels of a device whose row is locked; return those before. Raises as `changed`."""
    before = dict(device.labels)
    device.labels = changed(before, changes)
    return before
