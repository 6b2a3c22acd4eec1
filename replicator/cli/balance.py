"""farstripe pool stats and pool balance: which areas are busy with what, and where they had better lie."""

from __future__ import annotations

from typing import Any

import click

from replicator.cli import names, progress
from replicator.cli.access import Node, pass_node
from replicator.cli.output import emit, json_option, table
from replicator.cli.units import format_duration, format_size


@click.command()
@click.option("--volume", shell_complete=names.volumes, help="Only areas of this volume, snapshot or clone.")
@click.option("--top", type=click.IntRange(1, 2048), default=20, show_default=True, help="How many areas to list.")
@click.option("--on", "switch", flag_value="on", help="Take statistics from now on, also after a restart.")
@click.option("--off", "switch", flag_value="off", help="Take none.")
@json_option
@pass_node
def stats(here: Node, volume: str | None, top: int, switch: str | None, as_json: bool) -> None:
    """Show the load of RAID groups and of their busiest areas: a second, random and sequential, read and written.

    Rates decay: what happened five minutes ago counts half. Busy is the time spent in requests, in seconds a second.
    An area that snapshots or clones share is listed once, with the requests of all.
    """
    if switch:
        done = here.target("pool.stats_switch", on=switch == "on")
        emit(as_json, done, f"statistics of areas are {'on' if done['on'] else 'off'}")
        return
    asked: dict[str, Any] = {"top": top, **({"volume": volume} if volume else {})}
    found = here.target("pool.stats", **asked, wait_s=300)
    if as_json:
        emit(True, found)
        return
    if not found["on"]:
        click.echo("statistics of areas are off; farstripe pool stats --on takes them")
        return
    columns = ("random reads", "random writes", "sequential reads", "sequential writes", "bytes/s", "busy")
    groups = [(one["name"], f"RAID-{one['level']}", *_cells(one)) for one in found["groups"]]
    table(False, None, ("raid group", "level", *columns), groups, "no RAID groups")
    click.echo()
    areas = [(one["volume"], one["area"], one["raid_group"], *_cells(one)) for one in found["areas"]]
    table(False, None, ("volume", "area", "raid group", *columns), areas, "no area had requests lately")
    if found["more_areas"]:
        click.echo(f"and {found['more_areas']} areas more")
    click.echo(
        f"a second, by the last {format_duration(found['age_s'])}; an area has {format_size(found['area_bytes'])}"
    )


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    requests = one["requests"]
    kinds = ("random_read", "random_write", "sequential_read", "sequential_write")
    return (
        *(f"{requests[kind]:.1f}" for kind in kinds),
        format_size(round(sum(one["bytes"].values()))),
        f"{one['utilisation']:.3f}",
    )


@click.command()
@click.option("--plan", "plan_only", is_flag=True, help="Only show what would move; so it is without --apply.")
@click.option("--apply", "apply", is_flag=True, help="Move it, in the background, while the pool is used.")
@click.option("--cancel", is_flag=True, help="Make no more moves of a plan that is under way.")
@click.option("--progress", "show_progress", is_flag=True, help="Show how far a plan that is under way has come.")
@click.option("--most", type=click.IntRange(3, 4096), help="Moves at most; 64 without it.")
@click.option("--placed", "placed_too", is_flag=True, help="Also areas that somebody placed on a RAID group by choice.")
@click.option("--force", is_flag=True, help="Move also by statistics younger than a minute.")
@click.option("--wait", "wait_for_it", is_flag=True, help="With --apply: wait until it has moved, with a progress bar.")
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="With --wait: give up waiting after this.")
@json_option
@pass_node
def balance(
    here: Node,
    plan_only: bool,
    apply: bool,
    cancel: bool,
    show_progress: bool,
    most: int | None,
    placed_too: bool,
    force: bool,
    wait_for_it: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Plan which areas should lie on another RAID group, by their statistics, and with --apply move them.

    Areas with random requests belong on RAID 1 or 10, those with sequential ones on RAID 5 or 6, and no group should be
    much busier than the others. Every move comes with its reason. Snapshots and clones that share an area move along.
    """
    if plan_only + apply + cancel + show_progress > 1:
        raise click.UsageError("--plan, --apply, --cancel and --progress exclude each other")
    if wait_for_it and not apply:
        raise click.UsageError("--wait goes with --apply")
    if cancel:
        ended = here.target("pool.balance_cancel")
        count = ended["cancelled"]
        emit(as_json, ended, f"{count} moves are cancelled" if count else "the pool is not being balanced")
        return
    if show_progress:
        so_far = here.target("pool.balance_progress")
        emit(as_json, so_far, _progress(so_far))
        return
    asked: dict[str, Any] = {"apply": apply, "placed_too": placed_too, "force": force}
    if most is not None:
        asked["most"] = most
    made = here.target("pool.balance", **asked, wait_s=300)
    if not as_json:
        _show(made)
    if wait_for_it:
        made["progress"] = wait_for_balance(here, timeout_s, show=not as_json)
    if as_json:
        emit(True, made)
    elif wait_for_it and made["moves"]:
        click.echo(_progress(made["progress"]))


def _show(made: dict[str, Any]) -> None:
    rows = [(one["volume"], one["area"], one["from"], one["to"], one["reason"]) for one in made["moves"]]
    table(False, None, ("volume", "area", "from", "to", "reason"), rows, "nothing should move")
    if made["skipped"]:
        click.echo()
        left = [(one["volume"], one["area"], one["raid_group"], one["reason"]) for one in made["skipped"]]
        table(False, None, ("stays", "area", "raid group", "because"), left, "")
    if rows:
        click.echo()
        busy = [(one["name"], f"{one['before']:.3f}", f"{one['after']:.3f}") for one in made["groups"]]
        table(False, None, ("raid group", "busy now", "expected"), busy, "")
        if made["more"]:
            click.echo("there is more to move; plan again after this")
        click.echo("it moves now" if made["applied"] else "farstripe pool balance --apply moves it")


def _progress(so_far: dict[str, Any]) -> str:
    if not so_far["planned"]:
        return "the pool has not been balanced since the target started"
    text = f"{so_far['moved']} of {so_far['planned']} areas have moved, {so_far['left']} are left"
    return "; ".join([text, *so_far["left_out"]])


def wait_for_balance(here: Node, timeout_s: float | None, show: bool) -> dict[str, Any]:
    """Wait until no move of a plan is left; returns how it went. Raises TimedOut."""
    area_bytes = here.target("pool.status")["area_bytes"]
    latest: dict[str, Any] = {}

    def look() -> progress.Look:
        nonlocal latest
        latest = here.target("pool.balance_progress")
        return progress.Look(not latest["left"], latest["left"] * area_bytes, latest["planned"] * area_bytes)

    progress.wait(look, "balancing", timeout_s, show)
    return latest


COMMANDS = (stats, balance)
