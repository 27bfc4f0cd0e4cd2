"""A near copy of a model beside its original, both run on the same inputs: how often they give another answer."""

from typing import Final

import numpy as np

from sprat_server.sharing.activations import Runner
from sprat_server.sharing.releases import NotShareable, Release
from sprat_shared.evidence.certificate import Certificate, certify, certify_answers, outside
from sprat_shared.wire.tensors import Array

_BATCH: Final = 100
_LOGITS: Final = 2  # dimensions of answers that name classes


def certified(original: Release, copy: Release, inputs: Array, *, tolerance: float | None = None) -> Certificate:
    """Return the certificate of a copy, from inputs that chose nothing about it.

    Args:
        original: what it is to be like.
        copy: it.
        inputs: (n, ...), as both take them.
        tolerance: of a regression: an answer is the same if no output moved by more; None: both name classes.

    Raises:
        NotShareable: one cannot be run on these inputs, they answer in different shapes, or name no classes.
    """
    answers = [_answers(one, inputs) for one in (original, copy)]
    shapes = [answer.shape[1:] for answer in answers]
    if shapes[0] != shapes[1]:
        raise NotShareable(
            f"{original.name} answers {list(shapes[0])} and {copy.name} {list(shapes[1])}: it is no near copy of it"
        )
    if tolerance is not None:
        rows = [answer.reshape(len(inputs), -1).tolist() for answer in answers]
        return certify(outside(rows[0], rows[1], tolerance), len(inputs))
    if answers[0].ndim != _LOGITS or shapes[0][0] < 2:  # noqa: PLR2004 - classes
        raise NotShareable(f"{original.name} answers {list(shapes[0])}, no classes; give a tolerance for its outputs")
    classes = [answer.argmax(1).tolist() for answer in answers]
    return certify_answers(classes[0], classes[1])


def _answers(release: Release, inputs: Array) -> Array:
    release.require_takes(inputs)
    return np.asarray(Runner(release.filled()).answers(inputs, _BATCH))
