"""The decision table: total, unambiguous, symmetric, and never careless with acknowledged writes."""

import random
from collections import Counter

import pytest

from replicator.core.decisions import DOMAIN, TABLE, Action, Facts, all_facts, combinations, look_up, matches, resolves
from replicator.core.epochs import Rewound, make_epoch
from replicator.core.handshake import decide
from replicator.core.hello import NOT_YET, VERSION, Hello

A, B, C = "aa" * 16, "bb" * 16, "cc" * 16
GROUP = "cd" * 16
TAG = {A: 0xAAAAAA, B: 0xBBBBBB}
E1A, E2A, E2B, E3A = make_epoch(1, TAG[A]), make_epoch(2, TAG[A]), make_epoch(2, TAG[B]), make_epoch(3, TAG[A])


def side(node: str = A, role: str = "primary", pos: int = 10, hist: tuple = ((E1A, 0),), **changes: object) -> Hello:
    """A healthy side with its whole journal."""
    base = Hello(
        version=VERSION, node=node, group=GROUP, volumes=((0, 4096),), role=role, state="ok", hist=hist, pos=pos,
        durable=pos, floor=pos, last_write=pos, journal=(1, pos), starts=(1,), unclean=False, copy_id="", synced=0,
        sync=False, split=False, discard="", discard_epoch=0, handover="", upstream="",
    )  # fmt: skip
    return base._replace(**changes)


def follower(**changes: object) -> Hello:
    return side(**{"node": B, "role": "secondary", "pos": 8, **changes})


LABELS = {facts: row for row in TABLE for facts in combinations(row)}


def test_every_combination_of_facts_matches_exactly_one_row():
    hits = Counter(facts for row in TABLE for facts in combinations(row))
    assert set(hits) == set(all_facts())
    assert set(hits.values()) == {1}


def test_looking_up_finds_the_row_that_matches():
    for facts in random.Random(1).sample(all_facts(), 2000):
        row = look_up(facts)
        assert matches(row, facts) and row is LABELS[facts]


def test_rows_name_only_known_facts_and_values():
    for row in TABLE:
        for name, value in zip(Facts._fields, row.when, strict=True):
            assert value == "*" or set(value.split("|")) <= set(DOMAIN[name]), (row.label, name)
    assert len({row.label for row in TABLE}) == len(TABLE)


def test_acknowledged_writes_are_overwritten_only_with_the_operators_consent():
    for facts, row in LABELS.items():
        loses = facts.tail in ("acknowledged", "set-back") and facts.relation in (
            "parted",
            "forked",
            "unrelated",
            "outdated",
        )
        if loses and facts.consent == "no":
            assert row.action not in (Action.COPY, Action.STREAM, Action.RESUME), facts


def test_what_was_given_up_with_its_line_is_shipped_over_by_a_primary_or_its_relays_only():
    for facts, row in LABELS.items():
        if facts.tail == "rewound" and row.action in (Action.COPY, Action.STREAM, Action.RESUME):
            assert facts.primaries in ("one", "relay"), facts


def test_promised_writes_are_given_up_only_with_the_operators_consent():
    for facts, row in LABELS.items():
        whole = facts.follow in ("ok", "stands")
        if facts.tail == "received" and facts.sync == "yes" and whole and facts.consent == "no":
            assert row.action not in (Action.COPY, Action.STREAM, Action.RESUME) or facts.relation not in (
                "parted",
                "forked",
            )


def test_a_copy_that_stands_at_a_marker_is_not_copied_to_unless_it_holds_nothing_or_is_given_up():
    for facts, row in LABELS.items():
        if facts.follow == "stands" and row.action in (Action.COPY, Action.RESUME):
            assert facts.consent == "yes" or facts.relation == "fresh", facts


def test_nothing_is_shipped_between_two_primaries_or_none():
    for facts, row in LABELS.items():
        if facts.primaries not in ("one", "relay"):
            assert row.action not in (Action.COPY, Action.STREAM, Action.RESUME), facts


def test_streaming_needs_the_journal_an_exact_image_and_one_history():
    for facts, row in LABELS.items():
        if row.action in (Action.STREAM, Action.RESUME):
            assert (facts.journal, facts.image, facts.split, facts.compat) == ("covers", "exact", "no", "ok")
            assert facts.relation in ("same", "behind")


FORK_A = {"hist": ((E1A, 0), (E3A, 9)), "pos": 12}
FORK_B = {"hist": ((E1A, 0), (E2B, 5)), "pos": 8}
TOOK_OVER = {"hist": ((E1A, 0), (E2B, 8)), "pos": 11}

RELAY = side(B, "secondary", 10, upstream=A)
"""In the middle: fed by A, and feeds C."""
BELOW = side(C, "secondary", 8, upstream=B)

OTHER_TREE = side(C, "secondary", 9, ((E1A, 0), (make_epoch(2, 0xCCCCCC), 5)), upstream="dd" * 16)

BACK = (Rewound(E2B, 5, (), 10),)
"""B was at 10 when its operator took it back to the marker at 5, where it became primary."""
TAKEN_BACK = side(B, pos=7, hist=((E1A, 0), (E2B, 5)), rewound=BACK)
LEFT = side(C, "secondary", 10, upstream=B, rewound=())
"""Below B, with what B has given up."""

STORIES = [
    ("version", side(), follower(version=VERSION + 1)),
    ("wrong-group", side(), follower(group="ee" * 16)),
    ("size-mismatch", side(), follower(volumes=((0, 8192),))),
    ("split-wanted", side(split=True), follower()),
    ("finish-handover", side(role="secondary", handover=B), follower(pos=10)),
    ("no-primary", side(role="secondary", handover=B), follower(pos=9)),
    ("no-primary", side(role="secondary"), follower()),
    ("dual-primary", side(), side(B)),
    ("stale-primary", side(pos=8), side(B, **TOOK_OVER)),
    ("superseded", side(pos=10), side(B, **TOOK_OVER)),
    ("split-brain", side(**FORK_A), side(B, **FORK_B)),
    ("split-brain-resolved", side(**FORK_A, discard=B), side(B, **FORK_B)),
    ("split-brain-empty", side(**FORK_A), side(B, **FORK_B, last_write=5)),
    ("unrelated", side(), follower(hist=((E2B, 0),))),
    ("unrelated-step-down", side(discard=B), side(B, hist=((E2B, 0),))),
    ("unrelated-discard", side(discard=B), follower(hist=((E2B, 0),))),
    ("superseded-chosen", side(pos=10, discard=B), side(B, **TOOK_OVER)),
    ("full-fresh", side(), follower(hist=(), pos=0, state="fresh")),
    ("stream", side(), follower()),
    ("diff-journal-lost", side(journal=(10, 10)), follower()),
    ("diff-journal-lost", side(journal=None), follower()),
    ("diff-unclean", side(unclean=True), follower()),
    ("diff-unclean", side(copy_id="c1", synced=NOT_YET), follower()),
    ("stream", side(copy_id="c1", synced=7), follower()),
    ("resume-resync", side(copy_id="c1", synced=NOT_YET), follower(state="resync", copy_id="c1", floor=2)),
    ("redo-resync-journal-lost", side(copy_id="c1", journal=None), follower(state="resync", copy_id="c1", floor=2)),
    ("redo-resync-unclean", side(copy_id="c1", unclean=True), follower(state="resync", copy_id="c1", floor=2)),
    ("redo-resync", side(), follower(state="resync", copy_id="c1", floor=2)),
    ("resend-lost-journal", side(torn=0), follower(state="resync", torn=10)),
    ("resend-lost-journal", RELAY._replace(torn=0), BELOW._replace(state="resync", torn=9)),
    ("redo-resync", side(torn=0), follower(state="resync", torn=11)),
    ("redo-resync", side(), follower(state="resync", torn=10)),
    ("redo-resync", side(torn=0), follower(state="resync", torn=None)),
    ("redo-resync", side(torn=0, pos=12, hist=((E1A, 0), (E2A, 9))), follower(state="resync", torn=10)),
    ("redo-resync-journal-lost", side(torn=0, journal=(10, 10)), follower(state="resync", torn=10)),
    ("redo-resync-unclean", side(torn=0, unclean=True), follower(state="resync", torn=10)),
    ("source-incomplete", RELAY._replace(state="resync", torn=12), BELOW._replace(state="resync", torn=9)),
    ("diff-source-lost-power", side(pos=7, unclean=True), follower(pos=9)),
    ("diff-source-lost-power", side(hist=((E1A, 0), (E2A, 7)), unclean=True), follower(pos=9)),
    ("set-back", side(pos=7), follower(pos=9)),
    ("set-back", side(pos=7, sync=True), follower(pos=9)),
    ("set-back", side(hist=((E1A, 0), (E3A, 7)), pos=12), follower(hist=((E1A, 0), (E2A, 7)), pos=9)),
    ("set-back", side(pos=7, unclean=True, source_durable=0), follower(pos=9, source_durable=8)),
    ("diff-source-lost-power", side(pos=7, unclean=True, source_durable=0), follower(pos=9, source_durable=7)),
    ("diff-source-lost-power", side(pos=7, unclean=True), follower(pos=9, source_durable=8)),
    ("diff-source-lost-power", side(pos=7, copy_id="c1", synced=NOT_YET), follower(pos=9)),
    ("set-back", side(pos=7, copy_id="c1", synced=6), follower(pos=9)),
    ("set-back-discard", side(pos=7, discard=B), follower(pos=9)),
    ("set-back-discard", side(pos=7, sync=True, discard=B), follower(pos=9)),
    ("stale-primary", side(pos=7), side(B, **TOOK_OVER)),
    ("split-brain", side(hist=((E1A, 0), (E3A, 7)), pos=9), side(B, **TOOK_OVER)),
    (
        "redo-source-lost-power",
        side(pos=7, sync=True, unclean=True),
        follower(pos=9, state="resync", copy_id="c1", floor=2),
    ),
    ("primary-lost-tail", side(pos=7, sync=True, unclean=True), follower(pos=9)),
    (
        "primary-lost-tail",
        side(hist=((E1A, 0), (E2A, 7)), pos=8, last_write=7, sync=True, unclean=True),
        follower(pos=9),
    ),
    ("lost-tail-conflict", side(hist=((E1A, 0), (E2A, 7)), pos=9, sync=True, unclean=True), follower(pos=9)),
    ("lost-tail-discard", side(pos=7, sync=True, discard=B, unclean=True), follower(pos=9)),
    (
        "finish-handover",
        side(role="secondary", hist=((E1A, 0), (E2A, 7)), pos=8, last_write=7, handover=B),
        follower(pos=9),
    ),
    ("diff-diverged-tail", side(B, **TOOK_OVER), side(A, "secondary", pos=10, last_write=8)),
    ("diff-discard", side(B, **TOOK_OVER, discard=A), side(A, "secondary", pos=10, state="diverged")),
    ("former-primary", side(B, **TOOK_OVER), side(A, "secondary", pos=10, state="diverged")),
    ("outdated-primary", side(pos=8), follower(**TOOK_OVER)),
    ("diff-rewound", TAKEN_BACK, LEFT),
    ("diff-rewound", TAKEN_BACK._replace(sync=True), LEFT),
    ("diff-journal-lost", TAKEN_BACK._replace(journal=(6, 7)), LEFT._replace(pos=4, last_write=4, floor=4)),
    ("stream", TAKEN_BACK._replace(journal=(6, 7)), LEFT._replace(pos=5, last_write=5, floor=5)),
    ("diff-diverged-tail", TAKEN_BACK, LEFT._replace(last_write=5)),
    ("superseded", TAKEN_BACK, side(A, rewound=())),
    ("former-primary", TAKEN_BACK, side(A, "secondary", state="diverged", rewound=())),
    ("former-primary", TAKEN_BACK, LEFT._replace(pos=11, last_write=11)),
    ("former-primary", TAKEN_BACK, LEFT._replace(rewound=None)),
    ("former-primary", TAKEN_BACK._replace(rewound=None), LEFT),
    ("diff-discard", TAKEN_BACK._replace(discard=C), LEFT._replace(pos=11, last_write=11)),
    ("full-fresh", RELAY, side(C, "secondary", 0, (), state="fresh")),
    ("stream", RELAY, BELOW),
    ("stream", RELAY, BELOW._replace(upstream="")),
    ("stream", RELAY._replace(hist=((E1A, 0), (E2B, 8))), BELOW),
    ("diff-journal-lost", RELAY._replace(journal=(10, 10)), BELOW),
    ("resume-resync", RELAY._replace(copy_id="c1"), BELOW._replace(state="resync", copy_id="c1", floor=2)),
    ("redo-resync", RELAY, BELOW._replace(state="resync", copy_id="c1", floor=2)),
    ("source-incomplete", RELAY._replace(state="resync"), BELOW),
    ("source-incomplete", RELAY._replace(state="diverged"), BELOW),
    ("source-behind", RELAY, BELOW._replace(pos=12, durable=12, last_write=12)),
    ("source-outdated", RELAY, BELOW._replace(hist=((E1A, 0), (E2B, 7)))),
    ("no-primary", RELAY._replace(upstream=C), BELOW),
    ("no-primary", RELAY._replace(upstream=""), BELOW),
    ("no-primary", RELAY, BELOW._replace(upstream="dd" * 16)),
    ("stream", RELAY._replace(pos=8), BELOW._replace(hist=((E1A, 0), (E2A, 8)), pos=12, upstream="dd" * 16)),
    ("diff-source-lost-power", RELAY._replace(hist=((E1A, 0), (E2A, 7))), BELOW),
    ("relay-lost-tail", RELAY._replace(hist=((E1A, 0), (E2A, 7)), sync=True), BELOW),
    ("lost-tail-discard", RELAY._replace(hist=((E1A, 0), (E2A, 7)), sync=True, discard=C), BELOW),
    ("former-primary", RELAY._replace(hist=((E1A, 0), (E2B, 7))), BELOW),
    ("diff-discard", RELAY._replace(hist=((E1A, 0), (E2B, 7)), discard=C), BELOW),
    ("diff-diverged-tail", RELAY._replace(hist=((E1A, 0), (E2B, 7))), BELOW._replace(last_write=6)),
    ("two-trees", RELAY._replace(hist=((E1A, 0), (E2A, 7))), OTHER_TREE),
    ("diff-discard", RELAY._replace(hist=((E1A, 0), (E2A, 7)), discard=C), OTHER_TREE),
    ("diff-discard", RELAY._replace(hist=((E1A, 0), (E2A, 7)), discard=B, last_write=10), OTHER_TREE),
    ("former-primary", side(B, hist=((E1A, 0), (E3A, 7))), OTHER_TREE),
    ("primary-given-up", side(B, hist=((E1A, 0), (E3A, 7)), discard=B), OTHER_TREE),
    ("former-primary", side(B, hist=((E1A, 0), (E3A, 7)), discard=B), OTHER_TREE._replace(upstream=B)),
    ("unrelated", RELAY, BELOW._replace(hist=((E2B, 0),))),
    ("version", RELAY, BELOW._replace(version=1)),
    ("stream", side(stands=0), follower(stands=5)),
    ("stands-journal-lost", side(stands=0, journal=None), follower(stands=5)),
    ("diff-journal-lost", side(stands=0, journal=None), follower(stands=0)),
    ("diff-journal-lost", side(stands=0, journal=None), follower(stands=None)),
    ("diff-journal-lost", side(stands=None, journal=None), follower(stands=5)),
    ("stands-journal-lost", RELAY._replace(stands=0, journal=(10, 10)), BELOW._replace(stands=5)),
    ("stands-unclean", side(stands=0, unclean=True), follower(stands=5)),
    ("stands-source-lost-power", side(stands=0, pos=7, unclean=True), follower(pos=9, stands=5)),
    ("primary-lost-tail", side(stands=0, pos=7, sync=True, unclean=True), follower(pos=9, stands=5)),
    ("stands-parted", TAKEN_BACK._replace(stands=0), LEFT._replace(stands=5)),
    ("diff-discard", TAKEN_BACK._replace(stands=0, discard=C), LEFT._replace(pos=11, last_write=11, stands=5)),
    ("redo-resync", side(stands=0), follower(state="resync", copy_id="c1", floor=2, stands=5)),
    ("outdated-discard", side(pos=8, discard=B), follower(**TOOK_OVER)),
    ("outdated-discard", RELAY._replace(discard=BELOW.node), BELOW._replace(hist=((E1A, 0), (E2B, 7)))),
]


@pytest.mark.parametrize(("label", "one", "other"), STORIES, ids=[f"{n}-{s[0]}" for n, s in enumerate(STORIES)])
def test_each_cause_finds_its_row_from_either_side(label: str, one: Hello, other: Hello):
    assert decide(one, other).label == label
    assert decide(other, one) == decide(one, other)


@pytest.mark.parametrize(("label", "one", "other"), STORIES, ids=[f"{n}-{s[0]}" for n, s in enumerate(STORIES)])
def test_what_is_said_to_resolve_a_refusal_does(label: str, one: Hello, other: Hello):
    decision = decide(one, other)
    wanted = resolves(label, primaries=[one.role, other.role].count("primary"))
    if decision.action is not Action.REFUSE or one.discard:
        return
    for node in (decision.lead, decision.follow):
        named = one._replace(discard=node), other._replace(discard=node)
        helps = decide(*named).action is not Action.REFUSE
        follow = one if one.node == decision.follow else other
        joins = label == "former-primary" and follow.upstream not in ("", decision.lead) and follow.state == "ok"
        assert helps == (wanted == "either" or (wanted == "follow" and (node == decision.follow or joins))), node


def test_every_row_is_reached_by_a_story_except_the_defensive_one():
    told = {label for label, _, _ in STORIES}
    assert {row.label for row in TABLE} - told == {"outdated-both"}


def test_a_relay_never_steps_down_or_becomes_primary_by_a_handshake():
    for facts, row in LABELS.items():
        if facts.primaries.startswith("relay") or facts.primaries == "rivals":
            assert row.action not in (Action.STEP_DOWN, Action.PROMOTE), facts


def test_an_incomplete_or_lagging_relay_ships_nothing():
    for facts, row in LABELS.items():
        if facts.primaries in ("relay-busy", "relay-behind") and (facts.compat, facts.split) == ("ok", "no"):
            assert row.action is Action.WAIT, facts


def test_of_two_secondaries_the_one_that_is_fed_by_another_feeds():
    decision = decide(RELAY, BELOW)
    assert (decision.lead, decision.follow, decision.acts, decision.from_seq) == (B, C, C, 9)


def test_a_secondary_that_hears_of_a_newer_history_from_below_follows_it():
    """C took over and its own peer follows it; B, which was fed from above until now, follows too."""
    newer = BELOW._replace(hist=((E1A, 0), (E2A, 8)), pos=12, upstream="dd" * 16)
    assert decide(RELAY._replace(pos=8), newer).lead == C


def test_the_leave_to_discard_a_node_does_not_cover_what_it_got_since_from_elsewhere():
    named = side(B, **TOOK_OVER, discard=A, discard_epoch=E1A)
    assert decide(named, side(A, "secondary", pos=10, state="diverged")).label == "diff-discard"
    since = side(A, "secondary", pos=12, hist=((E1A, 0), (E3A, 9)))
    assert decide(named, since).label == "former-primary"


def test_what_a_takeover_at_a_marker_gave_up_is_known_by_epochs_and_positions():
    """The old line went on with E2A at 7, and B held 10 of it; the marker was at 5."""
    back = TAKEN_BACK._replace(rewound=(Rewound(E2B, 5, ((E2A, 7),), 10),))
    assert decide(back, LEFT._replace(hist=((E1A, 0), (E2A, 7)))).label == "diff-rewound"
    assert decide(back, LEFT._replace(pos=7, last_write=7)).label == "diff-rewound"
    assert decide(back, LEFT._replace(pos=8, last_write=8)).label == "former-primary"  # nobody knows where 8 is from
    assert decide(back, LEFT._replace(hist=((E1A, 0), (E2A, 7)), pos=11)).label == "former-primary"


def test_a_node_is_asked_for_what_it_wrote_itself_also_when_others_gave_it_up():
    own = make_epoch(2, 0xCCCCCC)
    back = TAKEN_BACK._replace(rewound=(Rewound(E2B, 5, ((own, 7),), 10),))
    assert decide(back, LEFT._replace(hist=((E1A, 0), (own, 7)))).label == "former-primary"


def test_a_relay_hands_on_what_was_given_up():
    """C has followed B; D, below it, still holds what C held."""
    relay = side(C, "secondary", 9, ((E1A, 0), (E2B, 5)), upstream=B, rewound=BACK)
    below = side("dd" * 16, "secondary", 10, upstream=C, rewound=())
    assert decide(relay, below).label == "diff-rewound"
    later = relay._replace(hist=((E1A, 0), (E2B, 5), (E3A, 8)), node=A, role="primary", upstream="")
    assert decide(later, below).label == "diff-rewound"


def test_the_common_position_is_the_base_of_the_parting():
    decision = decide(side(B, **TOOK_OVER, discard=A), side(A, "secondary", pos=10, state="diverged"))
    assert (decision.c, decision.lead, decision.follow, decision.lost_records) == (8, B, A, 2)


def test_streaming_starts_after_the_follow_sides_position():
    assert decide(side(), follower()).from_seq == 9


def test_a_copy_is_full_only_when_a_bitmap_does_not_reach_back():
    assert not decide(side(journal=None, starts=(1, 9)), follower()).full
    assert decide(side(journal=None, starts=(10,)), follower()).full
    assert decide(side(), follower(hist=(), pos=0, floor=0, state="fresh")).full


def test_a_stopped_resync_never_counts_its_position_as_certain():
    decision = decide(side(), follower(state="resync", floor=3, copy_id="old"))
    assert (decision.action, decision.c) == (Action.COPY, 3)


def _random_side(rng: random.Random, node: str) -> Hello:
    hist = [(E1A, 0)] + ([(rng.choice((E2A, E2B)), rng.randint(2, 8))] if rng.random() < 0.6 else [])
    if rng.random() < 0.1:
        hist = []
    pos = (hist[-1][1] + rng.randint(1, 6)) if hist else 0
    return side(
        node, rng.choice(("primary", "secondary")), pos, tuple(hist),
        state=rng.choice(("ok", "resync", "diverged")), floor=rng.randint(0, pos), last_write=rng.randint(0, pos),
        journal=rng.choice((None, (rng.randint(1, pos + 1), pos))),
        starts=tuple(rng.sample(range(1, 9), rng.randint(0, 2))),
        unclean=rng.random() < 0.2, copy_id=rng.choice(("", "x")), split=rng.random() < 0.1,
        discard=rng.choice(("", "", A, B)), discard_epoch=rng.choice((0, E1A, E2B)),
        handover=rng.choice(("", "", A, B)), upstream=rng.choice(("", A, B, C)),
        torn=rng.choice((None, 0, 4, 9)), stands=rng.choice((None, 0, 5)),
        rewound=rng.choice((None, (), BACK, (Rewound(E2A, 4, ((E2B, 6),), 9),))),
    )  # fmt: skip


def test_both_sides_decide_the_same_for_any_two_hellos():
    for seed in range(5000):
        rng = random.Random(seed)
        one, other = _random_side(rng, A), _random_side(rng, B)
        assert decide(one, other) == decide(other, one), seed
