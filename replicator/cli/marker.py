"""farstripe marker: one named instant over groups of any number of nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from replicator.cli import names
from replicator.cli.access import Node, pass_node
from replicator.cli.output import confirm, emit, force_option, json_option, table, yes_option
from replicator.cli.units import SecondsType


class _Groups(click.ParamType):  # type: ignore[type-arg]  # a generic class only in new releases of click
    """GROUP[@NODE],… as a list."""

    name = "groups"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        words = value if isinstance(value, list) else [word.strip() for word in str(value).split(",")]
        if not all(words):
            self.fail(f"{value!r} names an empty group; write GROUP,GROUP@NODE", param, ctx)
        return list(words)


groups_option = click.option(
    "--groups", required=True, type=_Groups(), metavar="GROUP[@NODE],...", shell_complete=names.groups,
    help="The groups. @NODE: the node that is primary of the group, or has a copy and passes on; left out: this one.",
)  # fmt: skip


def making_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what a marker is made with."""
    for option in (
        click.option("--hold", type=click.Choice(["storage", "hosts"]), default="storage", show_default=True,
                     help="Who holds writes: the nodes of the groups, or the hosts linked by 'marker host add'."),
        click.option("--after", default="", help="A command to run when writes go on again, also after a failure."),
        click.option("--before", default="", help="A command to run before writes are held; if it fails, none are."),
        click.option("--deadline", "deadline_s", type=SecondsType(0.05, 30), default="2", show_default=True,
                     metavar="SECONDS", help="How long writes may be held, whatever happens."),
        click.option("--no-image", is_flag=True, help="Only mark the sequences; copies keep no snapshots."),
    ):  # fmt: skip
        function = option(function)
    return function


@click.group()
def marker() -> None:
    """Markers: the same instant in several groups, also of several nodes.

    The writes of all groups are held for a moment, each group's sequence gets the marker, and writes go on. Every copy
    keeps a snapshot of each volume as it was at the marker; those of one marker belong together.
    """


@marker.command()
@click.argument("name")
@groups_option
@making_options
@click.option("--suspend", is_flag=True, help="Copies apply nothing after the marker until 'marker resume'.")
@click.option("--received", is_flag=True, help="Return when every node that a primary feeds has the marker.")
@json_option
@pass_node
def create(
    here: Node, name: str, groups: list[str], deadline_s: float, no_image: bool, suspend: bool, received: bool,
    before: str, after: str, hold: str, as_json: bool,
) -> None:  # fmt: skip
    """Make the marker NAME.

    When a node cannot be reached or does not answer in time, no marker is made and all writes go on. When only the
    command of --after fails, the marker is made all the same; the error says so, with exit code 4.

    With --hold hosts the nodes hold nothing. Every linked host that writes to one of the groups is asked to stop its
    writes, and must say that it has; and after the marker, that it had all the time. Else there is no marker, as when
    anything was written to the groups meanwhile. All hosts are released in any case.

    The marker is put into the sequence of each group where the group is primary. This node needs no line to the
    primary: with GROUP@NODE, where NODE has a copy, and with GROUP, where this node has one, each node passes on what
    it is asked to the one that feeds it. When a line on the way is down, the error names it.

    The command returns when the primaries have the marker. With --received it returns when every node that they feed
    directly has it too, so that it outlives the loss of the primaries; after 30 seconds it fails with exit code 11, and
    the marker goes on its way. For the images on all copies see 'farstripe marker wait'.

    \b
      farstripe marker create monday --groups shop,books@beta --before 'fsfreeze -f /srv' --after 'fsfreeze -u /srv'
      farstripe marker create tuesday --groups shop,books@beta --hold hosts --deadline 10
    """
    made = here.replicator(
        "marker.create", name=name, groups=groups, deadline_s=deadline_s, image=not no_image, suspend=suspend,
        before=before, after=after, hold=hold, received=received, wait_s=180,
    )  # fmt: skip
    then = f"'farstripe marker wait {name}' waits for the copies"
    emit(as_json, made, f"marker {name} made in {', '.join(groups)}; {then}")


@marker.command("list")
@json_option
@pass_node
def list_(here: Node, as_json: bool) -> None:
    """List the markers made by this node, and those that copies on this node hold."""
    found = here.replicator("marker.list")
    rows = [
        (one["name"], ", ".join(group["group"] for group in one["groups"]), one["state"], one.get("why") or "-")
        for one in found["markers"]
    ]
    made = {one["n"] for one in found["markers"]}
    for book in found["here"]:
        for entry in book["entries"]:
            if entry["n"] not in made:
                rows.append((entry["name"], book["group"], entry["state"], entry["why"] or "-"))
    for name, what in sorted(found["schedules"].items()):
        failing = found.get("failing", {}).get(name)
        remark = f"keeps {what['keep']}" + (f"; FAILS: {failing}" if failing else "")
        rows.append((name, ", ".join(what["groups"]), f"every {what['interval_s']:g} s", remark))
    table(as_json, found, ("marker", "groups", "state", "remark"), rows, "no markers")


@marker.command()
@click.argument("name")
@json_option
@pass_node
def show(here: Node, name: str, as_json: bool) -> None:
    """Show where the marker NAME has arrived."""
    found = here.replicator("marker.show", name=name, wait_s=60)
    rows = [
        (one["node"], one["group"] or "-", one["role"], one["state"], "yes" if one.get("stands") else "no",
         ", ".join((one.get("snapshots") or {}).values()) or one["why"] or "-")
        for one in found["copies"]
    ]  # fmt: skip
    table(as_json, found, ("node", "group", "role", "state", "suspended", "image"), rows, "nobody knows of it")


@marker.command()
@click.argument("name")
@click.option("--timeout", "timeout_s", type=SecondsType(0.1, 86400), default="60", show_default=True,
              metavar="SECONDS", help="Give up after this time.")  # fmt: skip
@click.option("--received", is_flag=True, help="Only until every node that a primary feeds has received it.")
@json_option
@pass_node
def wait(here: Node, name: str, timeout_s: float, received: bool, as_json: bool) -> None:
    """Wait until every copy has the marker NAME: its image, taken when all that came before was applied."""
    found = here.replicator("marker.wait", name=name, timeout_s=timeout_s, received=received, wait_s=timeout_s + 30)
    emit(as_json, found, f"marker {name} is {'received' if received else 'complete'}")


@marker.command()
@click.argument("name")
@yes_option
@json_option
@pass_node
def delete(here: Node, name: str, yes: bool, as_json: bool) -> None:
    """Delete the marker NAME with its images on every node."""
    confirm(f"Delete marker {name} and its images on every node?", yes, as_json)
    done = here.replicator("marker.delete", name=name, wait_s=120)
    later = f"; told when they can be reached: {', '.join(done['left'])}" if done["left"] else ""
    emit(as_json, done, f"marker {name} deleted{later}")


@marker.command()
@click.argument("name", required=False)
@click.option("--groups", type=_Groups(), metavar="GROUP,...", help="Instead of NAME: groups whose copies are here.")
@json_option
@pass_node
def resume(here: Node, name: str | None, groups: list[str] | None, as_json: bool) -> None:
    """Let copies that stand at the marker NAME follow again."""
    if bool(name) == bool(groups):
        raise click.UsageError("give the marker's NAME, or --groups")
    args: dict[str, Any] = {"name": name} if name else {"groups": groups}
    done = here.replicator("marker.resume", wait_s=60, **args)
    emit(as_json, done, _resumed_text(done["copies"]))


def _resumed_text(copies: list[Any]) -> str:
    """What marker.resume did: maps of nodes when asked by a marker's name, else names of groups whose copies stood."""
    away = sorted({str(one["node"]) for one in copies if isinstance(one, dict) and one["state"] == "unreachable"})
    if away:
        return f"copies follow again, but {', '.join(away)} could not be asked: give the command again later"
    return "the copies follow again" if copies else "no copy here stood at a marker; give the command where one does"


@marker.command()
@click.argument("name")
@click.option("--every", "interval_s", required=True, type=SecondsType(0.5, 86400 * 31), metavar="SECONDS",
              help="The time between two markers.")  # fmt: skip
@click.option("--keep", type=click.IntRange(1, 90), default=2, show_default=True, help="Complete images to keep.")
@groups_option
@making_options
@json_option
@pass_node
def schedule(
    here: Node, name: str, interval_s: float, keep: int, groups: list[str], deadline_s: float, no_image: bool,
    before: str, after: str, hold: str, as_json: bool,
) -> None:  # fmt: skip
    """Make markers NAME-TIME again and again. This node makes them, and goes on after a restart.

    An image is deleted when enough newer ones are complete in every place, never before. To change a schedule end it
    with `marker unschedule`, and make it anew.
    """
    here.replicator(
        "marker.schedule", name=name, interval_s=interval_s, keep=keep, groups=groups, deadline_s=deadline_s,
        image=not no_image, before=before, after=after, hold=hold,
    )  # fmt: skip
    emit(as_json, {"name": name}, f"markers {name}-… are made every {interval_s:g} s")


@marker.command()
@click.argument("name")
@json_option
@pass_node
def unschedule(here: Node, name: str, as_json: bool) -> None:
    """End the schedule NAME; the markers it made stay."""
    here.replicator("marker.unschedule", name=name)
    emit(as_json, {"name": name}, f"schedule {name} has ended")


@marker.group()
def host() -> None:
    """Hosts that hold their own writes while a marker is made with --hold hosts.

    A host is linked by a command, which this node runs when it makes a marker. The command stops the host's writes,
    prints "held", waits for "release" on its standard input, lets writes go on, and prints "released" if they were
    held all the time. When its input ends, or after FARSTRIPE_HOLD_S seconds, it lets them go on by itself. The script
    scripts/farstripe-freeze does so with filesystems, on hosts that have nothing else of farstripe.
    """


@host.command("add")
@click.argument("name")
@click.option("--run", "command", required=True, metavar="COMMAND", help="What has the host hold; run by the shell.")
@click.option(
    "--groups",
    type=_Groups(),
    metavar="GROUP[@NODE],...",
    shell_complete=names.groups,
    help="The groups that the host writes to; left out: all.",
)
@json_option
@pass_node
def add_host(here: Node, name: str, command: str, groups: list[str] | None, as_json: bool) -> None:
    """Link the host NAME. Every host that writes to a group has to be linked.

    \b
      farstripe marker host add web1 --groups shop --run 'ssh web1 farstripe-freeze --seconds $FARSTRIPE_HOLD_S /srv'
    """
    here.replicator("marker.host_add", name=name, command=command, groups=groups or [])
    emit(as_json, {"name": name}, f"host {name} is linked; 'farstripe marker host test {name}' tries it")


@host.command("list")
@json_option
@pass_node
def list_hosts(here: Node, as_json: bool) -> None:
    """List the hosts that are linked to this node."""
    found = here.replicator("marker.list")["hosts"]
    rows = [(name, ", ".join(one["groups"]) or "all", one["command"]) for name, one in sorted(found.items())]
    table(as_json, found, ("host", "groups", "command"), rows, "no hosts are linked")


@host.command("remove")
@click.argument("name")
@json_option
@pass_node
def remove_host(here: Node, name: str, as_json: bool) -> None:
    """Link the host NAME no longer."""
    here.replicator("marker.host_remove", name=name)
    emit(as_json, {"name": name}, f"host {name} is not linked any more")


@host.command("test")
@click.argument("name")
@json_option
@pass_node
def test_host(here: Node, name: str, as_json: bool) -> None:
    """Have the host NAME hold its writes for an instant, and say whether it did."""
    here.replicator("marker.host_test", name=name, wait_s=90)
    emit(as_json, {"name": name}, f"host {name} has held, and goes on")


@marker.command()
@click.argument("name", required=False)
@groups_option
@force_option("Also while a primary is alive. What was written after the marker is lost.")
@yes_option
@json_option
@pass_node
def takeover(here: Node, name: str | None, groups: list[str], force: bool, yes: bool, as_json: bool) -> None:
    """Make this node primary of groups as they were at a marker: NAME, or the newest that every group's copy has.

    Name all groups that belong together. Those that are here are taken; for those at @NODE it is seen to that they have
    the marker too, and the same command with its NAME takes them there.

    Nodes that this one feeds go on with it by themselves: what they hold beyond the marker is given up with what this
    node holds. A former primary that comes back keeps it until you name it: farstripe pair resync --discard.
    """
    offers = here.replicator("marker.offers", groups=groups)["offers"]
    newest = name or (offers[0]["name"] if offers else "the newest marker")
    confirm(f"Take over {', '.join(groups)} as of {newest}? What was written after it is lost.", yes, as_json)
    args = {"name": name} if name else {}
    done = here.replicator("marker.takeover", groups=groups, force=force, wait_s=300, **args)
    emit(as_json, done, f"this node is primary of {', '.join(done['groups'])} as of marker {done['marker']} now")
