"""Nodes meet: tokens, proofs, pinned certificates, and what strangers get."""

import contextlib
import json
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable

import pytest

from replicator.control import read_frame, write_frame
from replicator.core.errors import AlreadyExists, AuthError, BadInput, NotFound, PeerError, Refused
from replicator.daemon import joining, listener, tokens
from replicator.daemon.service import Replicator
from replicator.daemon.tls import connect_unknown
from tests.unit.replicator.daemon.conftest import InProcess, free_port

Two = tuple[InProcess, InProcess]


def test_joining_makes_both_nodes_peers_for_good(two: Two) -> None:
    a, b = two
    token = a.call("peer.token")["token"]
    assert b.call("peer.join", token=token)["name"] == "alpha"
    assert [p["name"] for p in a.call("peer.list")] == ["beta"]
    assert [p["name"] for p in b.call("peer.list")] == ["alpha"]
    a.stop()
    a.start()
    assert [p["name"] for p in a.call("peer.list")] == ["beta"]
    assert "peer.joined" in a.events() and "peer.joined" in b.events()


def test_a_token_is_good_once(two: Two, make_node: Callable[[str], InProcess]) -> None:
    a, b = two
    token = a.call("peer.token")["token"]
    b.call("peer.join", token=token)
    with pytest.raises(AuthError, match="used already"):
        make_node("gamma").call("peer.join", token=token)
    assert [p["name"] for p in a.call("peer.list")] == ["beta"]


def test_an_expired_token_is_refused(two: Two) -> None:
    a, b = two
    assert a.replicator is not None
    node = a.replicator.node
    old = node.tokens.issue("127.0.0.1", a.port, "alpha", node.identity.fingerprint, 5, time.time() - 60)
    with pytest.raises(AuthError, match="expired"):
        b.call("peer.join", token=old.encode())
    assert a.call("peer.list") == b.call("peer.list") == []


def test_a_wrong_secret_is_refused_and_the_token_stays_good(two: Two) -> None:
    a, b = two
    word = a.call("peer.token")["token"]
    good = tokens.decode(word)
    forged = tokens.Token(good.address, good.port, good.name, good.fingerprint, good.id, os.urandom(32), good.expires)
    with pytest.raises(AuthError, match="secret is wrong"):
        b.call("peer.join", token=forged.encode())
    assert a.call("peer.list") == []
    b.call("peer.join", token=word)


def test_another_node_in_the_issuers_place_learns_nothing(two: Two, make_node: Callable[[str], InProcess]) -> None:
    a, b = two
    good = tokens.decode(a.call("peer.token")["token"])
    impostor = make_node("impostor")
    lured = tokens.Token("127.0.0.1", impostor.port, good.name, good.fingerprint, good.id, good.secret, good.expires)
    with pytest.raises(AuthError, match="not the node that made the token"):
        b.call("peer.join", token=lured.encode())
    assert impostor.call("peer.list") == b.call("peer.list") == []


def test_a_node_cannot_join_itself(two: Two) -> None:
    with pytest.raises(BadInput, match="itself"):
        two[0].call("peer.join", token=two[0].call("peer.token")["token"])


def test_nobody_at_the_tokens_address_is_a_peer_error(two: Two) -> None:
    a, b = two
    word = a.call("peer.token")["token"]
    a.stop()
    with pytest.raises(PeerError, match="cannot be reached"):
        b.call("peer.join", token=word)


def test_joining_again_with_the_same_key_is_harmless(joined: Two) -> None:
    a, b = joined
    b.call("peer.join", token=a.call("peer.token")["token"])
    a.call("peer.join", token=b.call("peer.token")["token"])
    assert len(a.call("peer.list")) == len(b.call("peer.list")) == 1


def test_a_known_node_with_another_key_is_refused(joined: Two, base: object) -> None:
    a, b = joined
    b.stop()
    for path in (b.state / "keys").iterdir():
        path.unlink()
    b.start()
    with pytest.raises(AlreadyExists, match="another certificate"):
        b.call("peer.join", token=a.call("peer.token")["token"])


def test_a_deleted_peer_is_refused_at_once(joined: Two) -> None:
    a, b = joined
    a.call("peer.delete", peer="beta")
    assert b.replicator is not None
    node = b.replicator.node
    with pytest.raises(AuthError, match="does not know this node"):
        node.call(node.peers.find("alpha"), "peer.hello")
    assert a.call("peer.list") == []
    with pytest.raises(NotFound):
        a.call("peer.delete", peer="beta")


def test_a_peer_with_pairs_is_not_deleted(joined: Two) -> None:
    a, _ = joined
    a.target.add_group("12" * 16, "app")
    a.call("pair.create", group="app", peer="beta")
    with pytest.raises(Refused, match="has pairs here: app"):
        a.call("peer.delete", peer="beta")


def test_another_certificate_at_a_peers_address_is_refused(joined: Two, make_node: Callable[[str], InProcess]) -> None:
    _, b = joined
    impostor = make_node("impostor")
    path = next((b.state / "peers").glob("*.json"))
    stored = json.loads(path.read_text())
    stored["port"] = impostor.port
    b.stop()
    path.write_text(json.dumps(stored))
    b.start()
    assert b.replicator is not None
    node = b.replicator.node
    with pytest.raises(AuthError, match="is not node alpha"):
        node.call(node.peers.find("alpha"), "peer.hello")


def test_a_token_must_name_an_address_when_the_node_listens_everywhere(base: object, two: Two) -> None:
    a, b = two
    a.stop()
    a.write_config(address="0.0.0.0")
    a.start()
    with pytest.raises(BadInput, match="all addresses"):
        a.call("peer.token")
    b.call("peer.join", token=a.call("peer.token", address="127.0.0.1")["token"])
    # and a newcomer that listens everywhere is known by where it called from
    b.stop()
    b.write_config(address="0.0.0.0")
    b.start()
    b.call("peer.join", token=a.call("peer.token", address="127.0.0.1")["token"])
    assert a.call("peer.list")[0]["address"] == "127.0.0.1"


@pytest.mark.parametrize("args", [{"port": 0}, {"port": True}, {"address": 5}, {"expires_s": "x"}, {"expires_s": -1}])
def test_bad_arguments_of_a_token(two: Two, args: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        two[0].call("peer.token", **args)


@pytest.mark.parametrize("token", ["", "nonsense", 5])
def test_bad_tokens(two: Two, token: object) -> None:
    with pytest.raises(BadInput):
        two[0].call("peer.join", token=token)


def test_proofs_differ_in_every_part() -> None:
    base = ("newcomer", ["a", "bc"], b"i" * 32, b"n" * 32)
    variants = [("issuer", *base[1:]), ("newcomer", ["ab", "c"], *base[2:]), (*base[:2], b"n" * 32, b"i" * 32)]
    first = joining.proof(b"s", *base)
    assert all(joining.proof(b"s", *variant) != first for variant in variants)
    assert joining.proof(b"t", *base) != first


# -- strangers ------------------------------------------------------------------------------------------------------


def closed_without_answer(sock: socket.socket, timeout_s: float = 15.0) -> bool:
    sock.settimeout(timeout_s)
    try:
        while chunk := sock.recv(4096):
            if chunk[:1] not in (b"\x15", b"\x16"):  # TLS alert or handshake
                return False
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 1000, b"NBDMAGIC", os.urandom(5000), b""])
def test_garbage_on_the_port_is_closed(two: Two, garbage: bytes) -> None:
    a, b = two
    with socket.create_connection(("127.0.0.1", a.port)) as sock:
        sock.sendall(garbage)
        sock.shutdown(socket.SHUT_WR)
        assert closed_without_answer(sock)
    b.call("peer.join", token=a.call("peer.token")["token"])


def test_a_silent_stranger_is_closed_in_time(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "OPEN_S", 0.3)
    with socket.create_connection(("127.0.0.1", two[0].port)) as sock:
        assert closed_without_answer(sock, 5)


def test_a_stranger_that_trickles_is_closed_in_time(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "OPEN_S", 0.5)
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", two[0].port)) as sock, contextlib.suppress(OSError):
        for byte in b"\x16\x03\x01\x40\x00" + bytes(2000):
            sock.sendall(bytes([byte]))
            time.sleep(0.02)
    assert time.monotonic() - began < 5


def test_more_strangers_than_places_keep_nobody_out_for_long(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "OPEN_S", 0.5)
    a, b = two
    crowd = [socket.create_connection(("127.0.0.1", a.port)) for _ in range(listener.MAX_OPENING + 20)]
    before = threading.active_count()
    assert before < 200
    time.sleep(1.0)
    b.call("peer.join", token=a.call("peer.token")["token"])
    for sock in crowd:
        sock.close()


@pytest.mark.parametrize(
    "frame",
    [{"t": "rpc", "op": "peer.hello", "args": {}}, {"t": "link", "group": "x"}, {"t": "what"}, {}],
)
def test_an_unknown_node_may_only_join(two: Two, frame: dict[str, object]) -> None:
    a, _ = two
    assert a.replicator is not None
    with contextlib.closing(connect_unknown("127.0.0.1", a.port, a.replicator.node.identity.fingerprint, 5)) as sock:
        write_frame(sock, frame)
        assert read_frame(sock) is None


def test_an_unknown_node_cannot_make_us_read_much(two: Two) -> None:
    a, _ = two
    assert a.replicator is not None
    with contextlib.closing(connect_unknown("127.0.0.1", a.port, a.replicator.node.identity.fingerprint, 5)) as sock:
        sock.sendall(struct.pack("<I", listener.MAX_OPENING_UNKNOWN_BYTES + 1))
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv_into(memoryview(bytearray(10))) == 0


@pytest.mark.parametrize(
    "change", [{"cert": "x"}, {"port": 0}, {"node_id": "../../etc"}, {"proof": "x"}, {"token": None}]
)
def test_a_malformed_join_changes_nothing(two: Two, change: dict[str, object]) -> None:
    a, b = two
    assert a.replicator is not None and b.replicator is not None
    mine, theirs = a.replicator.node.identity, b.replicator.node.identity
    token = tokens.decode(a.call("peer.token")["token"])
    frame: dict[str, object] = {
        "t": "join", "token": token.id, "node_id": b.node_id, "name": "beta", "address": "127.0.0.1", "port": b.port,
        "cert": theirs.cert_pem,
    }  # fmt: skip
    frame |= {key: value for key, value in change.items() if key != "proof"}
    fields = [str(frame[key]) for key in ("token", "node_id", "name", "address", "port")]
    frame["proof"] = joining.proof(token.secret, "newcomer", fields, mine.fingerprint, theirs.fingerprint)
    frame |= change
    with contextlib.closing(connect_unknown("127.0.0.1", a.port, mine.fingerprint, 5)) as sock:
        write_frame(sock, frame)
        answer = read_frame(sock)
    assert answer is None or not answer["ok"]
    assert a.call("peer.list") == []
    assert b.call("peer.join", token=token.encode())


def test_old_tls_is_refused(two: Two) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", two[0].port)) as raw, pytest.raises(ssl.SSLError):
        context.wrap_socket(raw)


# -- the process ----------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_refused_and_names_it(two: Two) -> None:
    a, b = two
    b.stop()
    b.port = a.port
    b.write_config()
    with pytest.raises(Refused, match=f"port {a.port}"):
        b.start()
    b.replicator = None
    assert not (b.run / "replicator.sock").exists()


def test_a_second_replicator_of_one_node_is_refused(two: Two) -> None:
    with pytest.raises(AlreadyExists, match="runs already"):
        Replicator(two[0].state, two[0].run)


def test_an_address_that_is_not_ours_is_refused(two: Two) -> None:
    a, _ = two
    a.stop()
    a.port = free_port()
    a.write_config(address="192.0.2.77")
    with pytest.raises(Refused, match=r"192\.0\.2\.77"):
        a.start()
    a.replicator = None


def test_stop_leaves_no_socket_and_no_pid_file(two: Two) -> None:
    a, _ = two
    assert (a.run / "replicator.pid").read_text().strip() == str(os.getpid())
    a.stop()
    assert not (a.run / "replicator.sock").exists()
    assert not (a.run / "replicator.pid").exists()
