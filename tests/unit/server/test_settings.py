"""Settings: from the environment, with options over it; a typo is an error that names itself."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from sprat_server.settings import Settings, load_settings
from sprat_shared.errors import InvalidInput


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SPRAT_"):
            monkeypatch.delenv(name)


def test_values_come_from_the_environment_and_options_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPRAT_PORT", "9000")
    monkeypatch.setenv("SPRAT_HOST", "::1")
    monkeypatch.setenv("SPRAT_RECIPE_PACKAGES", "models, more_models ,")
    settings = load_settings(port=9001, host=None, data_dir=tmp_path)
    assert (settings.port, settings.host, settings.data_dir) == (9001, "::1", tmp_path)
    assert settings.recipe_packages == ("models", "more_models")
    assert settings.blobs == str(tmp_path / "blobs")


def test_a_typo_is_an_error_that_names_it_and_the_nearest_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPRAT_DATABSE_URL", "postgresql://db/sprat")
    with pytest.raises(InvalidInput, match=r"SPRAT_DATABSE_URL is not a setting.*did you mean SPRAT_DATABASE_URL"):
        load_settings()


@pytest.mark.parametrize("name", ["SPRAT_TOKEN", "SPRAT_SERVER", "SPRAT_STATE"])
def test_variables_of_sprat_s_other_commands_are_no_typo(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SPRAT_AUTO_SIGN", "lab"),
        ("SPRAT_PORT", "70000"),
        ("SPRAT_PORT", "http"),
        ("SPRAT_POLL_INTERVAL_S", "0"),
        ("SPRAT_LOG_FORMAT", "xml"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_what_was_given(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match=f"{name}: .*{value}"):
        load_settings()


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPRAT_DATABASE_URL", "")
    assert load_settings().database_url is None


@pytest.mark.parametrize(
    ("auto_sign", "database_url", "models"),
    [
        (None, None, {"lab-a", "pcb"}),
        (None, "postgresql://db/sprat", set()),
        ("*", "postgresql://db/sprat", {"lab-a", "pcb"}),
        ("lab-*", "postgresql://db/sprat", {"lab-a"}),
        ("lab-*", None, {"lab-a"}),
        ("none", None, set()),
    ],
)
def test_the_server_signs_alone_with_its_private_database_or_where_it_is_told_to(
    auto_sign: str | None, database_url: str | None, models: set[str]
) -> None:
    settings = load_settings(auto_sign=auto_sign, database_url=database_url)
    assert {model for model in ("lab-a", "pcb") if settings.signs_alone(model)} == models


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        load_settings().port = 1  # type: ignore[misc]


COUNTS = {
    "auth_failures_per_minute",
    "db_pool_size",
    "enrolment_queue",
    "enrolment_queue_per_address",
    "event_streams",
    "job_max_setbacks",
}


def test_every_setting_says_what_it_is_for_or_names_it_with_its_unit() -> None:
    for name, field in Settings.model_fields.items():
        if field.annotation in {int, float} and name not in COUNTS | {"port"}:
            assert name.endswith(("_s", "_bytes")), name
