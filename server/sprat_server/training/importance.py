"""What an error in each tensor costs: where an update is cut afterwards, bytes go where the loss would notice.

The mean square of the loss's gradient, over small batches at the full retrain, stands for the loss's curvature (the
empirical Fisher information: Kunstner, Balles, Hennig, arXiv 1905.12558, also for when that is coarse).
"""

from typing import Final

import torch

from sprat_server.training.lesson import Lesson

_SAMPLES: Final = 1024
_BATCH: Final = 16


def importance(lesson: Lesson) -> dict[str, float]:
    """Return for each float tensor of the table the mean square of the loss's gradient by its values at the teacher.

    What has no gradient (a norm's statistics, a few values) counts as much as the most important of the others.
    Cost: forward and backward pass of at most 1,024 labelled samples of the train split, in its order.
    """
    names = [spec.name for spec in lesson.source.table.specs if lesson.base[spec.name].is_floating_point()]
    learned = lesson.learned()
    free = {name: lesson.teacher[name].detach().clone().requires_grad_() for name in learned}
    state = {**lesson.base, **lesson.teacher, **free}
    train, squares, count = lesson.train.labelled(), dict.fromkeys(learned, 0.0), 0
    for inputs, labels in zip(
        train.inputs[:_SAMPLES].split(_BATCH), train.labels[:_SAMPLES].split(_BATCH), strict=True
    ):
        loss = lesson.trainable.loss(lesson.outputs(state, inputs), labels)
        gradients = torch.autograd.grad(loss, list(free.values()), allow_unused=True)
        for name, gradient in zip(learned, gradients, strict=True):
            if gradient is not None and gradient.isfinite().all():
                squares[name] += float(gradient.double().square().mean())
        count += 1
    most = max(squares.values(), default=0.0) or 1.0
    return {name: squares.get(name, most) / count for name in names}
