"""Release b := release a + decode(update), with arithmetic whose result does not depend on the machine."""

from sprat_shared.apply.arithmetic import check_arithmetic, rebuild_tensor
from sprat_shared.apply.update import TensorSink, apply_update

__all__ = ["TensorSink", "apply_update", "check_arithmetic", "rebuild_tensor"]
