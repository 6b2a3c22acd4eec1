"""A non-blocking TLS connection: whole frames in, queued buffers out.

Rules that keep it fast and correct:
  * A frame is read into one buffer and handed out as a view; the view is valid until the next call of `next_frame`.
  * Buffers given to `send` are sent in order and not copied; the owner does not touch them while `unsent` is true.
  * The stream reads ahead: poll() tells the truth only once `unread` is false or `next_frame` has returned None.
"""

from __future__ import annotations

import ssl
import threading
from collections import deque

from replicator.daemon.link.wire import HEAD, HEAD_BYTES, check_head
from replicator.daemon.tlsstream import TlsStream

AHEAD_BYTES = 64 << 10
BUFFER_BYTES = (1 << 20) + 2 * AHEAD_BYTES  # a frame that carries a copy, and what is read beyond it
LINGER_S = 2.0
MAX_QUEUED_BYTES = 64 << 20
"""More unsent bytes than this mean that the peer does not read: the connection is given up. Only control frames queue
up; records are read from the journal when the queue is empty."""


class Lost(Exception):
    """The connection ended."""


class Connection:
    """One authenticated connection, owned by one thread."""

    def __init__(self, stream: TlsStream, bundle: str = "") -> None:
        """bundle: name of the link it belongs to; "" for a link of one connection."""
        stream.unblock()
        self.bundle = bundle
        self._stream = stream
        self._recv_into = stream.recv_into
        self._buf = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buf)
        self._start = self._end = 0
        self._out: deque[memoryview] = deque()
        self._out_bytes = 0
        self.bytes_in = self.bytes_out = 0
        self.wants_write = False
        """The socket was full: `flush` is to be called when it has room."""

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._stream.fileno()

    def be_patient(self) -> None:
        """Do not let the kernel end the connection because the peer reads nothing for long: its journal is full.

        A peer that is dead is noticed by its heartbeats, which it goes on sending.
        """
        self._stream.wait_for_reader()

    # -- out ------------------------------------------------------------------------------------------------------

    @property
    def unsent(self) -> bool:
        """Whether bytes given to `send` still wait."""
        return self.wants_write  # `send` and `flush` leave off only when all is gone or the socket is full

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Queue `data`, borrowed until sent, and send what the socket takes now. Raises Lost."""
        self._out.append(memoryview(data))
        self._out_bytes += len(data)
        if self._out_bytes > MAX_QUEUED_BYTES * 2:
            raise Lost("the peer does not read")
        if not self.wants_write:
            self.flush()

    def flush(self) -> None:
        """Send as much as the socket takes. Raises Lost."""
        out, stream = self._out, self._stream
        try:
            while out:
                view = out[0]
                sent = stream.send(view)
                self.bytes_out += sent
                self._out_bytes -= sent
                if sent == len(view):
                    out.popleft()
                else:
                    out[0] = view[sent:]
            stream.flush()
        except BlockingIOError:
            self.wants_write = True
            return
        except (OSError, ValueError) as exc:
            raise Lost(_reason(exc)) from exc
        self.wants_write = False

    # -- in -------------------------------------------------------------------------------------------------------

    def next_frame(self) -> tuple[int, int, int, memoryview] | None:
        """Return (type, flags, first_seq, body) of the next whole frame, None when more bytes must come first.

        Reads at most until that frame is whole. Raises Lost, or ProtocolError for a frame that cannot be right.
        """
        while True:
            have = self._end - self._start
            need = HEAD_BYTES
            if have >= HEAD_BYTES:
                length, kind, flags, zero, first_seq = HEAD.unpack_from(self._buf, self._start)
                check_head(length, kind, flags, zero)
                need += length
                if have >= need:
                    begin = self._start + HEAD_BYTES
                    self._start += need
                    return kind, flags, first_seq, self._view[begin : begin + length]
            if not self._fill(need):
                return None

    def _fill(self, need: int) -> bool:
        """Read until `need` bytes are here; False when that is all there is for now."""
        start, end = self._start, self._end
        if start == end:
            start = end = self._start = self._end = 0
            if need <= BUFFER_BYTES < len(self._buf):
                self._replace(BUFFER_BYTES)  # a huge record has passed: give its memory back
        if start + need > len(self._buf) or end == len(self._buf):
            if need > len(self._buf):
                self._replace(need)
            else:
                self._view[: end - start] = bytes(self._view[start:end])
                self._start, self._end = 0, end - start
            end = self._end
        view, receive = self._view, self._recv_into
        at, enough = end, self._start + need
        # Many small frames at once; but no more of the next large one than that, or it would have to be moved.
        limit = max(enough, end + AHEAD_BYTES)
        try:
            while at < enough:
                got = receive(view[at:limit])
                if got == 0:
                    raise Lost("the peer closed the connection")
                at += got
        except BlockingIOError:
            return False
        except (OSError, ValueError) as exc:
            raise Lost(_reason(exc)) from exc
        finally:
            self._end = at
            self.bytes_in += at - end
            if self._stream.unsent:
                self.wants_write = True  # TLS has something to say of its own
        return True

    def _replace(self, size: int) -> None:
        fresh = bytearray(size)
        rest = self._end - self._start
        fresh[:rest] = self._view[self._start : self._end]
        self._buf, self._view = fresh, memoryview(fresh)
        self._start, self._end = 0, rest

    def unread(self) -> bool:
        """Whether bytes are here that poll() does not show."""
        return self._end > self._start or self._stream.unread

    # -- end ------------------------------------------------------------------------------------------------------

    def close(self, *, gently: bool) -> None:
        """End the connection. `gently`: what was sent reaches the peer first, without keeping this thread waiting."""
        if not gently:
            self._stream.close()
            return
        threading.Thread(target=self.close_after_linger, name="link-close", daemon=True).start()

    def close_after_linger(self) -> None:
        """End the connection once what was sent has reached the peer. Takes some multiple of LINGER_S at most."""
        out = [bytes(view) for view in self._out if len(view) < 1 << 20]
        if len(out) != len(self._out):
            out = []  # records queued: what follows them will not be read in time anyway
        self._out.clear()
        self._stream.linger(out, LINGER_S)


def _reason(exc: BaseException) -> str:
    if isinstance(exc, ssl.SSLError):
        return f"TLS: {exc.reason or exc}"
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return str(exc) or type(exc).__name__
