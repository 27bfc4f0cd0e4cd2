"""What a rollout would be, as a person reads it; and the body that asks for one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sprat_client.cli.output import aligned, shown

if TYPE_CHECKING:
    from sprat_client.api import SpratClient
    from sprat_client.api.rollout_views import PlanView


def body_of(client: "SpratClient", wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is asked of the API: devices by id, nothing that is not said."""
    said = {name: value for name, value in wanted.items() if value is not None}
    devices: Sequence[str] | None = said.get("devices")
    return said if devices is None else {**said, "devices": [client.devices.resolve(one) for one in devices]}


def plan_text(plan: "PlanView") -> str:
    """Return a preview as text."""
    who = "evidence decides" if plan["rule"] == "evidence" else "the first failure halts"
    lines = [f"{plan['model']}@{plan['release']} to {plan['devices']} devices; {who}"]
    action = {
        "create": "it is not there yet",
        "unchanged": f"it is there already: {plan['rollout']}",
        "replace": f"the draft {plan['rollout']} differs and is replaced",
        "conflict": f"rollout {plan['rollout']} has started and differs: it is not changed",
    }[plan["action"]]
    lines.append(action)
    lines += [f"  {one['field']}: {shown(one['before'])} -> {shown(one['after'])}" for one in plan["changes"]]
    lines.append(f"starts: {plan['starts'] or 'when it is approved and somebody starts it'}")
    rows = [["wave", "reach", "devices", "reached", "then"]]
    rows += [
        [shown(wave[key]) for key in ("ordinal", "reach", "devices", "reached", "opens")] for wave in plan["waves"]
    ]
    lines += [f"  {line}" for line in aligned(rows)]
    if plan["controls"]:
        lines.append(f"held back as control: {plan['controls']}")
    if plan["unreached"]:
        lines.append(f"reached by no wave: {plan['unreached']}")
    lines += [f"note: {one}" for one in plan["notes"]]
    lines += [f"in the way: {one}" for one in plan["obstacles"]]
    return "\n".join(lines)
