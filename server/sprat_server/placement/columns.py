"""A mixed-integer program as it is written down, column by column and row by row, and HiGHS asked for its solution."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import highspy
import numpy as np

_INFINITY: Final = float("inf")
_TOLERANCE: Final = 1e-9
_REL_GAP: Final = 1e-6


class Columns:
    """Minimise the columns' costs within the rows' bounds."""

    def __init__(self) -> None:
        self._costs: list[float] = []
        self._bounds: list[tuple[float, float]] = []
        self._binary: list[bool] = []
        self._rows: list[tuple[float, float, dict[int, float]]] = []

    def column(self, cost: float, low: float, high: float, *, binary: bool = False) -> int:
        """Add a column of a cost, between two values; return its number."""
        self._costs.append(cost)
        self._bounds.append((low, high))
        self._binary.append(binary)
        return len(self._costs) - 1

    def add_cost(self, column: int, cost: float) -> None:
        """Have a column cost more."""
        self._costs[column] += cost

    def row(self, low: float, high: float, terms: Mapping[int, float]) -> None:
        """Have the sum of columns, each by its factor, be between two values."""
        self._rows.append((low, high, dict(terms)))

    def cost(self, values: Sequence[float]) -> float:
        """Return what values of the columns cost."""
        return sum(cost * value for cost, value in zip(self._costs, values, strict=True))

    def solve(self, seconds: float, start: Mapping[int, float] | None) -> tuple[str, list[float] | None, float]:
        """Return what came of it (`optimal`, `infeasible` or `time`), the columns' values and the bound.

        Args:
            seconds: of one core, at most, more or less.
            start: values of the binary columns that are not 0, to begin with; HiGHS completes the others.
        """
        highs = highspy.Highs()  # type: ignore[no-untyped-call]
        highs.silent()
        for option, value in (
            ("threads", 1),
            ("time_limit", float(seconds)),
            ("mip_rel_gap", _REL_GAP),
            ("mip_abs_gap", 0.0),
            ("mip_feasibility_tolerance", _TOLERANCE),
            ("primal_feasibility_tolerance", _TOLERANCE),
        ):
            highs.setOptionValue(option, value)
        highs.passModel(self._lp())
        if start is not None:
            solution = highspy.HighsSolution()
            solution.col_value = [start.get(at, 0.0) for at in range(len(self._costs))]
            highs.setSolution(solution)
        highs.run()
        status, info = highs.getModelStatus(), highs.getInfo()
        if status == highspy.HighsModelStatus.kInfeasible:
            return "infeasible", None, _INFINITY
        has_one = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        values = list(highs.getSolution().col_value) if has_one else None
        word = "optimal" if status == highspy.HighsModelStatus.kOptimal else "time"
        return word, values, max(0.0, float(info.mip_dual_bound)) if info.mip_dual_bound > -_INFINITY else 0.0

    def _lp(self) -> Any:
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(self._costs), len(self._rows)
        lp.col_cost_ = np.array(self._costs)
        lp.col_lower_ = np.array([low for low, _ in self._bounds])
        lp.col_upper_ = np.array([high for _, high in self._bounds])
        lp.row_lower_ = np.array([low for low, _, _ in self._rows])
        lp.row_upper_ = np.array([high for _, high, _ in self._rows])
        lp.integrality_ = [
            highspy.HighsVarType.kInteger if binary else highspy.HighsVarType.kContinuous for binary in self._binary
        ]
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.cumsum([0, *(len(terms) for _, _, terms in self._rows)])
        lp.a_matrix_.index_ = np.array([column for _, _, terms in self._rows for column in terms], dtype=np.int32)
        lp.a_matrix_.value_ = np.array([factor for _, _, terms in self._rows for factor in terms.values()])
        return lp
