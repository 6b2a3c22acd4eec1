"""Peers, identity, durable files and pair configurations: what is stored, and what damage does."""

import stat
from pathlib import Path

import pytest

from replicator.core.errors import AlreadyExists, BadInput, IntegrityError, NotFound
from replicator.daemon import durablefile, nodeconfig
from replicator.daemon.identity import Identity, check_cert, load_or_create
from replicator.daemon.pairstore import PairConfig, PairStore
from replicator.daemon.peers import PeerStore

IDS = ["aa" * 16, "ab" * 16]


@pytest.fixture
def identities(tmp_path: Path) -> list[Identity]:
    return [load_or_create(tmp_path / f"keys{n}", IDS[n]) for n in range(2)]


def test_an_identity_is_made_once_and_kept(tmp_path: Path) -> None:
    made = load_or_create(tmp_path / "keys", IDS[0])
    assert load_or_create(tmp_path / "keys", IDS[0]).fingerprint == made.fingerprint
    assert stat.S_IMODE(made.key_path.stat().st_mode) == 0o600
    assert check_cert(made.cert_pem)[1] == made.fingerprint


def test_a_damaged_or_foreign_key_is_an_integrity_error(identities: list[Identity]) -> None:
    one, other = identities
    one.key_path.write_bytes(other.key_path.read_bytes())
    with pytest.raises(IntegrityError, match="do not belong together"):
        load_or_create(one.key_path.parent, IDS[0])
    other.cert_path.write_text("nonsense")
    with pytest.raises(IntegrityError, match="damaged"):
        load_or_create(other.key_path.parent, IDS[1])


@pytest.mark.parametrize(
    "pem", ["", "x", None, "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----", "A" * 9000]
)
def test_what_is_no_certificate_is_refused(pem: object) -> None:
    with pytest.raises(ValueError):
        check_cert(pem)


def test_peers_are_stored_found_and_deleted(tmp_path: Path, identities: list[Identity]) -> None:
    store = PeerStore(tmp_path / "peers")
    changes: list[int] = []
    store.on_change = lambda: changes.append(1)
    for n, identity in enumerate(identities):
        store.add(IDS[n], f"node{n}", "127.0.0.1", 1000 + n, identity.cert_pem)
    again = PeerStore(tmp_path / "peers")
    assert [p.name for p in again.all()] == ["node0", "node1"]
    assert again.find("node1").node_id == again.find(IDS[1]).node_id == IDS[1]
    assert again.by_fingerprint(identities[0].fingerprint) == again.get(IDS[0])
    with pytest.raises(NotFound, match="no peer 'node7'"):
        again.find("node7")
    store.delete(IDS[0])
    assert [p.name for p in PeerStore(tmp_path / "peers").all()] == ["node1"]
    assert len(changes) == 3


def test_a_peer_is_renewed_only_with_the_same_certificate(tmp_path: Path, identities: list[Identity]) -> None:
    store = PeerStore(tmp_path / "peers")
    store.add(IDS[0], "old", "127.0.0.1", 1, identities[0].cert_pem)
    store.add(IDS[0], "new", "127.0.0.2", 2, identities[0].cert_pem)
    assert store.find("new").port == 2
    with pytest.raises(AlreadyExists, match="another certificate"):
        store.add(IDS[0], "new", "127.0.0.2", 2, identities[1].cert_pem)


def test_two_peers_of_one_name_must_be_named_by_id(tmp_path: Path, identities: list[Identity]) -> None:
    store = PeerStore(tmp_path / "peers")
    for n, identity in enumerate(identities):
        store.add(IDS[n], "same", "127.0.0.1", 1, identity.cert_pem)
    with pytest.raises(BadInput, match="2 peers"):
        store.find("same")
    assert store.find(IDS[1][:10]) if IDS[0][:10] != IDS[1][:10] else True


def test_damaged_files_name_themselves(tmp_path: Path) -> None:
    for folder, make in (("peers", PeerStore), ("pairs", PairStore)):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / f"{IDS[0]}.json"
        for content in ("{", "[]", '{"node_id": 1}'):
            path.write_text(content)
            with pytest.raises(IntegrityError, match=str(path)):
                make(tmp_path / folder)


def test_pairs_are_stored_changed_and_deleted(tmp_path: Path) -> None:
    store = PairStore(tmp_path)
    group = "cd" * 16
    for peer in IDS[:2]:
        store.put(PairConfig(group, "app", peer))
    store.change((group, IDS[0]), {"split": True, "handover": IDS[0]})
    store.change(("ef" * 16, IDS[0]), {"split": True})  # deleted meanwhile: nothing happens
    changed, other = PairConfig(group, "app", IDS[0], split=True, handover=IDS[0]), PairConfig(group, "app", IDS[1])
    assert {pair.peer: pair for pair in PairStore(tmp_path).of_group("app")} == {IDS[0]: changed, IDS[1]: other}
    store.delete((group, IDS[0]))
    assert PairStore(tmp_path).all() == [other]
    store.delete((group, IDS[1]))
    with pytest.raises(NotFound):
        store.of_group("app")


def test_a_pair_file_of_the_version_with_one_pair_a_group_is_taken_over(tmp_path: Path) -> None:
    group = "cd" * 16
    durablefile.write_json(tmp_path / f"{group}.json", {"group": group, "name": "app", "peer": IDS[0], "compress": 3})
    assert PairStore(tmp_path).get(group, IDS[0]) == PairConfig(group, "app", IDS[0], compress=3)
    assert [path.name for path in tmp_path.iterdir()] == [f"{group}.{IDS[0]}.json"]


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    durablefile.write_json(path, {"a": 1})
    durablefile.write_json(path, {"a": 2})
    assert durablefile.read_json(path) == {"a": 2}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    durablefile.remove(path)
    durablefile.remove(path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "damaged"),
        ('{"node_id": "xyz", "name": "a"}', "node_id"),
        ('{"node_id": "ID", "name": ""}', "name"),
        ('{"node_id": "ID", "name": "a", "replication": {"port": 0}}', "port"),
        ('{"node_id": "ID", "name": "a", "replication": {"port": true}}', "port"),
        ('{"node_id": "ID", "name": "a", "replication": {"address": 7}}', "address"),
    ],
)
def test_a_bad_node_configuration_names_the_field(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "node.json").write_text(text.replace("ID", IDS[0]))
    with pytest.raises((BadInput, IntegrityError), match=what):
        nodeconfig.load(tmp_path)


def test_no_node_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no node"):
        nodeconfig.load(tmp_path)
