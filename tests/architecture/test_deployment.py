"""The containers and the systemd unit: what they promise can be read off the files themselves."""

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = ("server/Dockerfile", "client/Dockerfile")


def ends_by_itself(name: str) -> bool:
    """Whether others wait for the service to complete: it does one thing and needs no health check."""
    conditions = [service.get("depends_on", {}).get(name, {}).get("condition") for service in SERVICES.values()]
    return "service_completed_successfully" in conditions


def test_the_fleet_in_compose_is_a_database_a_migration_a_server_a_worker_and_two_agents() -> None:
    assert {"db", "migrate", "server", "worker", "agent-1", "agent-2"} <= set(SERVICES)
    assert ends_by_itself("migrate")
    assert SERVICES["server"]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


@pytest.mark.parametrize("name", SERVICES)
def test_every_lasting_service_has_a_health_check_and_restarts(name: str) -> None:
    service = SERVICES[name]
    assert ends_by_itself(name) or service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] in {"unless-stopped", "on-failure"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_runs_without_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "build" in service or service.get("user") not in {None, "root", "0"}


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_every_stage_that_runs_ends_as_a_user_who_is_not_root(dockerfile: str) -> None:
    stages = re.split(r"^FROM ", (ROOT / dockerfile).read_text(), flags=re.MULTILINE)[1:]
    for stage in stages:
        if stage.splitlines()[0].endswith(" AS wheel"):
            continue
        users = re.findall(r"^USER (\S+)$", stage, flags=re.MULTILINE)
        assert users, stage.splitlines()[0]
        assert users[-1] != "root", stage.splitlines()[0]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_what_a_dockerfile_copies_exists_and_is_not_ignored(dockerfile: str) -> None:
    kept = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    for line in re.findall(r"^COPY (?!--from)(.+)$", (ROOT / dockerfile).read_text(), flags=re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source in kept, f".dockerignore leaves {source} out"


def test_no_secret_stands_in_the_compose_file() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            secret = re.search(r"PASSWORD$|TOKEN$|SECRET$|KEY$", variable)
            assert not secret or str(value).startswith("${"), f"{name}: {variable}"
            assert not re.search(r"://[^/@]*:[^$/@][^/@]*@", str(value)), f"{name}: {variable} holds a password"


def test_ports_are_published_on_loopback_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(str(port).startswith("127.0.0.1:") for port in ports)


def compose_command() -> list[str] | None:
    """How docker compose is called here, or None where there is none (no engine is needed to check the file)."""
    if standalone := shutil.which("docker-compose"):
        return [standalone]
    if docker := shutil.which("docker"):
        known = subprocess.run([docker, "compose", "version"], capture_output=True, check=False)
        return [docker, "compose"] if known.returncode == 0 else None
    return None


@pytest.mark.skipif(compose_command() is None, reason="docker compose is not installed")
def test_docker_compose_reads_the_file_without_a_word_of_complaint() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPRAT_")}
    done = subprocess.run(
        [*(compose_command() or []), "--file", ROOT / "docker-compose.yml", "config", "--quiet"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""


def test_the_unit_of_the_agent_is_locked_down() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read(ROOT / "client/systemd/sprat-agent.service")
    service = unit["Service"]
    for option in ("NoNewPrivileges", "PrivateDevices", "ProtectHome", "MemoryDenyWriteExecute", "DynamicUser"):
        assert service[option] == "yes", option
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert service["ExecStart"].startswith("/opt/sprat/bin/sprat-agent run --dir /var/lib/sprat-agent")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_knows_every_line_of_the_unit() -> None:
    unit = ROOT / "client/systemd/sprat-agent.service"
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if str(unit) in line]
    assert not complaints
