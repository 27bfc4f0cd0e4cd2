"""From errors to HTTP statuses."""

import inspect

import pytest

from sprat_server.api.problems import status_of
from sprat_shared import errors


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidInput("x"), 422),
        (errors.InvalidInput("x", code="blob.too-large"), 413),
        (errors.NotFound("x"), 404),
        (errors.Conflict("x"), 409),
        (errors.AccessDenied("x"), 403),
        (errors.Unauthenticated("x"), 401),
        (errors.TryLater("x"), 503),
        (errors.UntrustedUpdate("x"), 422),
        (errors.SpratError("x"), 500),
    ],
)
def test_each_kind_of_error_has_its_status(error: errors.SpratError, status: int) -> None:
    assert status_of(error) == status


def test_every_error_class_but_the_root_and_those_of_devices_has_a_status_of_its_own() -> None:
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.SpratError) and kind not in {errors.SpratError, errors.UnsafeArithmetic}:
            instance = kind.__new__(kind)
            assert status_of(instance) != 500, kind
