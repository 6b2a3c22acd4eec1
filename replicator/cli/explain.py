"""farstripe explain: why a group is in its state and what to do next; or what a word means.

The texts come from the tables that decide (replicator.core.status, decisions, takeover), so they cannot differ from
what the programs do; words that are not states stand in terms.py.
"""

from __future__ import annotations

from typing import Any

import click

from replicator.cli import asof, explain_pool, names, view
from replicator.cli.access import Node, pass_node
from replicator.cli.output import emit, json_option
from replicator.cli.status import loss_lines, lost_text
from replicator.cli.terms import TERMS
from replicator.core import conditions, decisions, takeover
from replicator.core import status as states
from replicator.core.errors import BadInput, FarstripeError, NotFound

_PLACES = {
    "group": "GROUP", "pair": "GROUP PEER", "peer": "the peer", "lag": "some", "todo": "some",
    "reason": "the reason is shown",
    "waits": "writers wait as long as the policy says, and then fail or go on here alone",
    "full": "writes of hosts wait as long as the policy says, and fail then, or fail at once",
    "cause": "the cause is shown", "lost": "N", "follow": "that node", "failed": "which is named",
    "holds": "whether they hold all that was answered is said", "without": "give the group a new one, as is said",
    "force": " [--force]", "refused": "the node that would feed this one is refused by another, as is said",
    "refused_on": "  (on that node)", "plan": "farstripe takeover GROUP --plan",
    "primaries": "another node, which is named,",
    "at": "the secondary", "on_at": "  (on the secondary)", "standing": "",
    "slow": "what becomes of them the policy says",
    "damaged": "N", "whole": "N-1",
    "instead": "; a copy can also take over, and what it would lack is said",
}  # fmt: skip

_ACTIONS = {
    decisions.Action.REFUSE: "Nothing is shipped; both sides stay as they are until an operator acts.",
    decisions.Action.WAIT: "The nodes stay connected and ship nothing.",
    decisions.Action.STEP_DOWN: "One side gives up the primary role durably, then both look again.",
    decisions.Action.PROMOTE: "The side that was handed the role becomes primary.",
    decisions.Action.STREAM: "The journal is shipped from where the copy stopped.",
    decisions.Action.RESUME: "The copy that was under way goes on.",
    decisions.Action.COPY: "Blocks that either side touched since they parted are copied (all, when that is unknown).",
}


KINDS = ("group", "raid-group", "member", "word")
_Thing = tuple[str, str, Any, str]
"""Kind, what it is called, what --json gives, text."""


@click.command()
@click.argument("what", required=False, metavar="[GROUP|RAID_GROUP|MEMBER|WORD]", shell_complete=names.explained)
@click.option("--kind", type=click.Choice(KINDS), help="What is meant, where one name stands for several things.")
@json_option
@pass_node
def explain(here: Node, what: str | None, kind: str | None, as_json: bool) -> None:
    """Explain the state of GROUP (of every group without it), of RAID_GROUP or MEMBER, or what WORD means.

    \b
      farstripe explain                every group of this node
      farstripe explain app            why group app is as it is, what it means, what to do
      farstripe explain pool           what is wrong with the pool's RAID groups and members
      farstripe explain /dev/sdd       how that member is; sdd will do
      farstripe explain SPLIT-BRAIN    a state that status shows
      farstripe explain stale-primary  what two nodes found out in their handshake
      farstripe explain journal        a word of this project

    Words are explained without a running node. A group, RAID group or member of that name comes before a word.
    """
    if what is None:
        found = view.collect(here)["groups"]
        emit(as_json, found, "\n\n".join(_group_text(one) for one in found) or "no groups; words: " + _words())
        return
    word = explain_word(what)
    if kind is None and what.lower() == "pool" and (entries := _pool_troubles(here)) is not None:
        emit(as_json, entries, "\n\n".join([*([_word_text(word)] if word else []), *map(explain_pool.text, entries)]))
        return
    things, trouble = _things(here, what, kind)
    if len(things) > 1:
        kinds = sorted({one[0] for one in things})
        which = f"--kind {' or --kind '.join(kinds)}" if len(kinds) > 1 else "give the whole path"
        raise BadInput(f"{what!r} is {' and '.join(one[1] for one in things)}", f"say which is meant: {which}")
    if things:
        emit(as_json, *things[0][2:])
    elif word is not None and kind in (None, "word"):
        emit(as_json, word, _word_text(word))
    elif trouble is not None and not isinstance(trouble, NotFound):
        raise trouble
    else:
        raise NotFound(f"{what!r} is neither a group, a RAID group or a member here nor a word", f"words: {_words()}")


def _things(here: Node, what: str, kind: str | None) -> tuple[list[_Thing], FarstripeError | None]:
    """What of this node has that name; and why it is not known whether there is a group of it, if it is not."""
    found: list[_Thing] = []
    trouble: FarstripeError | None = None
    if kind in (None, "group"):
        try:
            group = view.one_group(here, what)
            found.append(("group", f"group {group['name']}", group, _group_text(group)))
        except FarstripeError as exc:
            trouble = exc
    if kind in (None, "raid-group", "member"):
        try:
            in_pool = explain_pool.named(here.target("pool.status"), what)
        except FarstripeError:
            in_pool = []  # no pool; or no node, which the group has told
        for its_kind, label, entries in in_pool:
            if kind in (None, its_kind):
                found.append((its_kind, label, entries, "\n\n".join(map(explain_pool.text, entries))))
    return found, trouble


def _pool_troubles(here: Node) -> list[dict[str, Any]] | None:
    """What is not well with this node's pool; None when there is no node, no pool, or nothing to say."""
    try:
        return explain_pool.troubles(here.target("pool.status")) or None
    except FarstripeError:
        return None


def _words() -> str:
    labels = (one.label for one in conditions.CONDITIONS)
    return ", ".join([*sorted(TERMS), *(row.word for row in states.TABLE), *labels])


def _group_text(one: dict[str, Any]) -> str:
    edges = one["edges"]
    if len(edges) < 2:
        return _edge_text(one, "")
    told = [_edge_text(edge, f", pair with {edge['peer']['name']}") for edge in edges]
    return "\n".join([*told, *loss_lines(one["losses"])])


def _edge_text(one: dict[str, Any], which: str) -> str:
    lines = [f"group {one['name']}{which}: {one['word']} ({one['role'] or 'role unknown'})"]
    lines += [f"  why:      {one['why']}", f"  means:    {one['means']}", f"  do next:  {one['then']}"]
    lines += [f"            {command}" for command in one["commands"]]
    for told in one["conditions"]:
        lines += [f"  besides:  {told['text']}", f"  do next:  {told['then']}"]
        lines += [f"            {command}" for command in told["commands"]]
    lines += [f"  {line}" for line in asof.retained_lines(one)]
    if one["paired"]:
        lines.append(f"  would be lost with the primary: {lost_text(one['rpo'])}")
    return "\n".join(lines)


def explain_word(word: str) -> dict[str, Any] | None:
    """Return {word, kind, text, commands} for a state, a handshake or takeover label, or a term; None for none."""
    for row in states.TABLE:
        if row.word == word.upper():
            told = [part.format(**_PLACES) for part in (row.why, row.means, f"what to do: {row.then}")]
            text = " ".join(f"{part[0].upper()}{part[1:]}." for part in told)
            commands = [command.format(**_PLACES) for command in row.commands]
            return _entry(row.word, "state of a pair", text, commands)
    for one in conditions.CONDITIONS:
        if one.label == word.upper():
            text = f"{one.text}. What to do: {one.then}.".format(**_PLACES)
            advice = [command.format(**_PLACES) for command in one.commands]
            return _entry(one.label, "condition of a pair", f"{text[0].upper()}{text[1:]}", advice)
    if term := TERMS.get(word.lower()):
        return _entry(word.lower(), "word", term.text, list(term.commands))
    for step in decisions.TABLE:
        if step.label == word.lower():
            return _entry(step.label, "outcome of a handshake", f"{step.cause}. {_ACTIONS[step.action]}", [])
    for plan in takeover.TABLE:
        if plan.label == word.lower():
            text = f"{plan.message}. {plan.way_out}".format(**(_PLACES | {"lost": "what is lost is said"}))
            return _entry(plan.label, "outcome of a takeover", text.strip(), [])
    return None


def _entry(word: str, kind: str, text: str, commands: list[str]) -> dict[str, Any]:
    return {"word": word, "kind": kind, "text": text, "commands": commands}


def _word_text(entry: dict[str, Any]) -> str:
    return "\n".join(
        [f"{entry['word']} ({entry['kind']})", f"  {entry['text']}", *(f"    {c}" for c in entry["commands"])]
    )
