"""The cases: a base that devices have, new data, and the full retrain whose gain every method is to recover.

A further case is one more module with a `Case`, named in `CASES`. What a method is given is a `Problem`.
"""

from collections.abc import Mapping
from typing import Final

from sizes.cases.case import Case, CaseUnavailable
from sizes.cases.clipart import CLIPART
from sizes.cases.digits import DRIFT, NEW_CLASSES
from sizes.cases.fashion import FASHION
from sizes.cases.glosses import GLOSSES
from sizes.cases.problem import Problem, make_problem
from sizes.cases.sensors import SENSORS

__all__ = ["CASES", "Case", "CaseUnavailable", "Problem", "make_problem"]

CASES: Final[Mapping[str, Case]] = {
    case.name: case for case in (DRIFT, NEW_CLASSES, FASHION, SENSORS, GLOSSES, CLIPART)
}
