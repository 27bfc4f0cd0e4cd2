"""How the ports of a statistics graph are named: the graph that gives what goes into each batch norm of a release.

Its inputs are the model's and, for each local tensor, one that takes its values; its outputs are the norms' inputs.
"""

from typing import Final

STATISTIC_INPUT: Final = "t/"
"""`t/<index>` takes the values of that tensor, float32 (channels,)."""

NORM_OUTPUT: Final = "norm:"
"""`norm:<mean>:<variance>` gives the input of the norm with these tensors, (batch, channels, ...)."""
