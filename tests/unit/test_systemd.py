"""The units are accepted by systemd, ordered as their comments say, and as closed as promised."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path

import click
import pytest

from replicator.cli.main import cli
from tests.testing.needs import needs

UNITS = Path(__file__).resolve().parents[2] / "systemd"
MANUAL = UNITS.parent / "docs/man"
DAEMONS = ("farstripe-target.service", "farstripe-replicator.service", "farstripe-attach@.service")
JOBS = ("farstripe-balance.service", "farstripe-scrub.service")
TIMERS = ("farstripe-balance.timer", "farstripe-scrub.timer")
SERVICES = DAEMONS + JOBS
NAMES = SERVICES + TIMERS
MOST_EXPOSURE = 40  # tenths of a point of `systemd-analyze security`; 100 is an unconfined service


def read(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / name)
    return parser


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A copy of the units as an installed system sees them: `farstripe` found, the template instantiated."""
    for name in NAMES:
        text = re.sub(r"(?m)^(Exec\w+=)farstripe\b", r"\1/bin/true", (UNITS / name).read_text())
        (tmp_path / name.replace("@.", "@data.")).write_text(text)
    return tmp_path


def test_there_is_no_unit_that_is_not_tested() -> None:
    assert {path.name for path in UNITS.iterdir()} == set(NAMES)


def test_systemd_accepts_the_units(installed: Path) -> None:
    needs("systemd-analyze")
    units = sorted(str(path) for path in installed.iterdir())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_names_man_pages_that_there_are(name: str) -> None:
    pages = read(name)["Unit"]["Documentation"].split()
    assert pages and all((MANUAL / re.sub(r"man:(.+)\((\d)\)", r"\1.\2", page)).exists() for page in pages)


@pytest.mark.parametrize("name", SERVICES)
def test_the_units_are_hardened(installed: Path, name: str) -> None:
    needs("systemd-analyze")
    unit = installed / name.replace("@.", "@data.")
    argv = ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSURE}", str(unit)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_unit_runs_exists(name: str) -> None:
    service = read(name)["Service"]
    for key in ("ExecStart", "ExecStop"):
        if key not in service:
            continue
        words = service[key].split()
        assert words[0] == "farstripe"
        command: click.Command | None = cli
        for word in words[1:]:
            if not isinstance(command, click.Group):
                break
            command = command.get_command(click.Context(cli), word)
        assert isinstance(command, click.Command) and not isinstance(command, click.Group), service[key]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


def test_the_target_stops_first_and_attached_devices_before_it() -> None:
    """systemd stops in the reverse of the order in which it starts."""
    assert "farstripe-target.service" in read("farstripe-replicator.service")["Unit"]["Before"].split()
    after = read("farstripe-attach@.service")["Unit"]["After"].split()
    assert {"farstripe-target.service", "farstripe-replicator.service"} <= set(after)


@pytest.mark.parametrize("name", DAEMONS)
def test_every_service_tells_when_it_is_ready_and_keeps_the_shared_directory(name: str) -> None:
    service = read(name)["Service"]
    assert service["Type"] == "notify"
    assert service["RuntimeDirectory"] == "farstripe" and service["RuntimeDirectoryPreserve"] == "yes"


def test_one_process_does_not_pull_down_the_other() -> None:
    for name in NAMES:
        assert not {"Requires", "BindsTo", "PartOf"} & set(read(name)["Unit"])


def test_the_timer_starts_the_scrub_and_makes_up_for_one_it_missed() -> None:
    timer = read("farstripe-scrub.timer")
    assert timer["Timer"]["Persistent"] == "yes" and "Unit" not in timer["Timer"]


@pytest.mark.parametrize("name", TIMERS)
def test_a_timer_is_off_until_it_is_enabled_and_runs_a_job_that_ends(name: str) -> None:
    job = name.replace(".timer", ".service")
    assert read(name)["Install"]["WantedBy"] == "timers.target"
    assert job in JOBS and read(job)["Service"]["Type"] == "oneshot"
    assert not read(job).has_section("Install")
