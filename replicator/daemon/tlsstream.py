"""TLS over a TCP socket, its bytes moved in large pieces.

Python's SSLSocket makes a system call for each TLS record it sends, which holds 16 KiB, and two for each it reads: at a
gigabyte a second that is half of the processor time of a link. Here OpenSSL works on memory, and the socket takes and
gives PIECE_BYTES at a time; a small frame is read with one system call.

Until `unblock` it waits, for the socket's timeout at most in each call; afterwards it never does.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterable

PIECE_BYTES = 128 << 10
_OPENING_BYTES = 16 << 10  # until a connection has shown who it is, it costs no more memory than this
_LINGER_READS = 4096
_MAX_ANSWERS_BYTES = 1 << 20  # of OpenSSL itself, to a peer that asks for new keys and does not read


class TlsStream:
    """One TLS connection, used by one thread at a time. It owns the socket."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool = False) -> None:
        """Shake hands. Raises OSError (ssl.SSLError and TimeoutError among them); the caller then closes `sock`."""
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._read, self._write, self._undelivered = self._tls.read, self._tls.write, self._tls.pending
        self._raw = memoryview(bytearray(_OPENING_BYTES))
        self._unsent = memoryview(b"")
        self._ended = False
        self._timeout_s = sock.gettimeout()
        self._shake_hands(self._deadline())

    def _shake_hands(self, deadline: float | None) -> None:
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._encrypted()
                self.flush()
                self._fill(deadline)
            except ssl.SSLError:
                with contextlib.suppress(OSError):  # the alert tells the other side why
                    self._encrypted()
                    self.flush()
                raise
        self._encrypted()
        self.flush()

    @property
    def peer_certificate(self) -> bytes:
        """The other side's certificate in DER, empty when it showed none."""
        return self._tls.getpeercert(binary_form=True) or b""

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._sock.fileno()

    def settimeout(self, seconds: float) -> None:
        """Give each call this long."""
        self._timeout_s = seconds
        self._sock.settimeout(seconds)

    def _deadline(self) -> float | None:
        return time.monotonic() + self._timeout_s if self._timeout_s else None

    def unblock(self) -> None:
        """From now on raise BlockingIOError instead of waiting; large pieces are welcome."""
        self._timeout_s = None
        self._sock.setblocking(False)
        self._raw = memoryview(bytearray(PIECE_BYTES))

    def wait_for_reader(self) -> None:
        """Take the kernel's time limit off: it counts a peer that answers, but does not read, as lost."""
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)

    # -- out ------------------------------------------------------------------------------------------------------

    @property
    def unsent(self) -> bool:
        """Whether bytes that `send` has taken wait for room in the socket."""
        return len(self._unsent) > 0

    def send(self, data: memoryview) -> int:
        """Take some of `data`, at most PIECE_BYTES, and return how much; what was taken need not be kept.

        Raises BlockingIOError, with nothing taken, while bytes taken earlier are unsent; OSError when the connection is
        lost.
        """
        if self._unsent:
            self.flush()
        write, taken, stop = self._write, 0, min(len(data), PIECE_BYTES)
        while taken < stop:  # one TLS record a turn
            taken += write(data[taken:stop])
        encrypted = self._outgoing.read()
        try:
            sent = self._sock.send(encrypted)
        except BlockingIOError:
            sent = 0
        if sent < len(encrypted):
            self._unsent = memoryview(encrypted)[sent:]
        return taken

    def flush(self) -> None:
        """Send what was taken. Raises BlockingIOError when the socket is full, OSError when the connection is lost."""
        while self._unsent:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]

    def sendall(self, data: bytes) -> None:
        """Send all of `data`; for blocking streams. Raises OSError, TimeoutError."""
        view = memoryview(data)
        while view:
            view = view[self.send(view) :]
        self.flush()

    def _encrypted(self) -> None:
        """Fetch what OpenSSL wants to send of itself: the handshake, alerts, changes of keys."""
        fresh = self._outgoing.read()
        self._unsent = memoryview(b"".join((self._unsent, fresh))) if self._unsent else memoryview(fresh)

    # -- in -------------------------------------------------------------------------------------------------------

    @property
    def unread(self) -> bool:
        """Whether bytes are here that poll() does not show; they may be a part of a TLS record only."""
        return self._incoming.pending > 0 or self._undelivered() > 0

    def recv_into(self, buf: memoryview) -> int:
        """Read what is here, at most what `buf` holds; returns 0 at the end of the stream.

        Raises BlockingIOError when there is nothing yet, OSError (TimeoutError, ssl.SSLError).
        """
        if self._ended:
            return 0
        incoming, read, got, room = self._incoming, self._read, 0, len(buf)
        deadline = self._deadline() if self._timeout_s else None
        while got < room:  # one TLS record a turn
            if not incoming.pending:
                if got:  # and room is left, so the last record was delivered whole
                    break
                if not self._undelivered():
                    self._fill(deadline)
                    if self._ended:
                        break
            try:
                fresh = int(read(room - got, buf[got:]))  # a number, as it reads into a buffer
                if not fresh:
                    self._ended = True
                    break
                got += fresh
            except ssl.SSLWantReadError:  # a part of a record only
                if got or self._ended:
                    break
                self._fill(deadline)
            except ssl.SSLEOFError:
                self._ended = True
                break
        return got

    def _fill(self, deadline: float | None) -> None:
        """Take in what the socket has, or notice its end. Raises BlockingIOError, TimeoutError, OSError."""
        if self._outgoing.pending:  # an answer to the peer's change of keys
            self._encrypted()
            with contextlib.suppress(BlockingIOError):
                self.flush()
            if len(self._unsent) > _MAX_ANSWERS_BYTES:
                raise OSError("the peer does not read")
        if deadline is not None:
            rest = deadline - time.monotonic()
            if rest <= 0:
                raise TimeoutError("timed out")
            self._sock.settimeout(rest)
        got = self._sock.recv_into(self._raw)
        if got:
            self._incoming.write(self._raw[:got])
        else:
            self._incoming.write_eof()
            self._ended = True

    # -- end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the connection now."""
        self._sock.close()

    def linger(self, rest: Iterable[bytes], timeout_s: float) -> None:
        """Send the rest, say that nothing more comes, read what the peer still sends: closing earlier would reset it.

        Takes at most about `timeout_s` seconds for each of these; never fails.
        """
        with contextlib.suppress(OSError, ValueError):
            self._sock.settimeout(timeout_s)
            self.flush()
            for data in rest:
                self.sendall(data)
            self._sock.shutdown(socket.SHUT_WR)
            for _ in range(_LINGER_READS):
                if not self._sock.recv_into(self._raw):
                    break
        with contextlib.suppress(OSError):
            self._sock.close()
