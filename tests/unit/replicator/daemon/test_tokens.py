"""Tokens: a word that a person copies, good once, until it expires."""

from pathlib import Path

import pytest

from replicator.core.errors import AuthError, BadInput
from replicator.daemon.tokens import MAX_OPEN, Token, TokenStore, decode

FINGERPRINT = bytes(range(32))


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path / "tokens.json")


def issue(store: TokenStore, life_s: float = 60, now: float = 1000.0) -> Token:
    return store.issue("192.0.2.1", 10810, "alpha", FINGERPRINT, life_s, now)


def test_a_token_survives_being_copied(store: TokenStore) -> None:
    token = issue(store)
    assert decode(token.encode()) == token
    assert decode(f"  {token.encode()[:30]}\n{token.encode()[30:]} ") == token  # a terminal broke the line


@pytest.mark.parametrize("at", [4, 20, 60, -1])
def test_a_slip_of_the_pen_is_noticed(store: TokenStore, at: int) -> None:
    word = issue(store).encode()
    other = "A" if word[at] != "A" else "B"
    with pytest.raises(BadInput, match="damaged"):
        decode(word[:at] + other + (word[at + 1 :] if at != -1 else ""))


@pytest.mark.parametrize("word", ["", "hello", "fs1.", "fs1.%%%", "fs1.AAAA", "fs1.é", "fs1." + "A" * 9000])
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(BadInput):
        decode(word)


def test_a_token_is_good_once_also_after_a_restart(store: TokenStore, tmp_path: Path) -> None:
    token = issue(store)
    again = TokenStore(tmp_path / "tokens.json")
    assert again.secret_of(token.id, 1010.0) == token.secret
    again.consume(token.id)
    for one in (again, TokenStore(tmp_path / "tokens.json")):
        with pytest.raises(AuthError, match="used already"):
            one.secret_of(token.id, 1010.0)
    with pytest.raises(AuthError):
        again.consume(token.id)


def test_a_token_expires(store: TokenStore) -> None:
    token = issue(store, life_s=60, now=1000.0)
    with pytest.raises(AuthError, match="expired"):
        store.secret_of(token.id, 1060.0)


def test_the_number_of_open_tokens_is_bounded_and_expired_ones_make_room(store: TokenStore) -> None:
    for _ in range(MAX_OPEN):
        issue(store, life_s=60, now=1000.0)
    with pytest.raises(BadInput, match="open already"):
        issue(store, now=1000.0)
    issue(store, now=2000.0)


@pytest.mark.parametrize("life_s", [0, -5, 1e9])
def test_a_life_out_of_range_is_refused(store: TokenStore, life_s: float) -> None:
    with pytest.raises(BadInput):
        issue(store, life_s=life_s)
