"""A TCP proxy that reads along in the Postgres protocol, so that a test can act at a chosen moment.

A step is one thing the client asks for: the login, or one Query message. Steps are numbered in the
order in which they arrive at this proxy, over all connections. Each step has moments:

  before  the client's message is held back       login  the client's password is held back
  during  the server works at it, without end     mid    part of the COPY's data has passed
  end     the COPY's last message is held back    after  the server's final answer is held back

At each moment the hook is called, in the connection's own thread; what was held back goes on when
the hook returns.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from typing import Any, Callable, List, NamedTuple, Optional

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102
MID_COPY_BYTES = 3000
TICK = 0.02
# Small, so that a COPY that is held back is held back at the server too, and not in the network.
BUFFER_BYTES = 16384
# A statement of ours in front of the client's: the server is then at work for as long as a test needs.
SLOW = b"SELECT pg_catalog.pg_sleep(3600); "


class Moment(NamedTuple):
    side: str
    index: int
    when: str


class Cut(Exception):
    """The connection was cut on purpose."""


class Link(threading.Thread):
    """One connection of a client, and its counterpart to the server. One thread owns both sockets."""

    def __init__(self, proxy: "Proxy", client: socket.socket):
        super().__init__(daemon=True)
        self.proxy, self.client, self.server = proxy, client, None  # type: ignore[assignment]
        self.unread = {}  # what has arrived of a message, by its socket
        self.step = None  # type: Optional[int]
        self.copied = 0
        self.backend_pid = None  # type: Optional[int]
        self.starting_up = True
        self.logged_in = False
        self.one_byte_answer = False
        self.is_cancel = False
        self.cut_wanted = False
        self.ended = threading.Event()

    def run(self) -> None:
        hard = True
        try:
            self.carry()
            hard = False
        except (Cut, OSError):
            pass
        finally:
            for line in (self.client, self.server):
                if line is not None:
                    close(line, hard)
            self.ended.set()

    def carry(self) -> None:
        """Pass messages on until either end closes; a stalled proxy swallows them and keeps both open."""
        lines = [self.client]
        if not self.proxy.stalled:
            self.server = socket.socket()
            self.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            self.server.connect(self.proxy.target)
            lines.append(self.server)
        for line in lines:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.setblocking(False)
            self.unread[line] = b""
        was_stalled = self.proxy.stalled
        while True:
            self.obey()
            if was_stalled and not self.proxy.stalled:
                raise Cut()  # what was swallowed is missing; nothing can go on from here
            was_stalled = was_stalled or self.proxy.stalled
            for line in select.select(lines, [], [], TICK)[0]:
                data = line.recv(65536)
                if data:
                    self.receive(line, data)
                elif self.proxy.stalled:
                    lines.remove(line)
                else:
                    return

    def obey(self) -> None:
        if self.cut_wanted:
            raise Cut()

    def receive(self, line: socket.socket, data: bytes) -> None:
        self.unread[line] += data
        while not self.proxy.stalled:
            message = self.next_message(line)
            if not message:
                return
            (self.client_says if line is self.client else self.server_says)(message)

    def next_message(self, line: socket.socket) -> bytes:
        """Cut one whole message off what has arrived; b"" where there is none yet."""
        data = self.unread[line]
        if line is self.server and self.one_byte_answer:
            size, self.one_byte_answer = 1, not data
        else:
            head = 0 if line is self.client and self.starting_up else 1
            if len(data) < head + 4:
                return b""
            size = head + struct.unpack("!I", data[head:head + 4])[0]
        if len(data) < size:
            return b""
        self.unread[line] = data[size:]
        return data[:size]

    def client_says(self, message: bytes) -> None:
        if self.starting_up:
            self.start_up(message)
        elif message[:1] == b"p" and not self.logged_in:
            self.logged_in = True
            self.reach("login")
        elif message[:1] == b"Q":
            text = message[5:-1]
            self.begin_step(text.decode(errors="replace"))
            prefix = self.proxy.slow_down(Moment(self.proxy.side, self.step, "during"))
            if prefix:
                message = b"Q" + struct.pack("!I", len(prefix + text) + 5) + prefix + text + b"\0"
                self.send(self.server, message)
                self.reach("during")
                return
        self.pass_on(self.server, message)

    def start_up(self, message: bytes) -> None:
        code = struct.unpack("!I", message[4:8])[0]
        if code in (SSL_REQUEST, GSS_REQUEST):
            self.one_byte_answer = True
            return
        self.starting_up = False
        self.is_cancel = code == CANCEL_REQUEST
        if not self.is_cancel:
            self.begin_step("login")

    def server_says(self, message: bytes) -> None:
        if message[:1] == b"K":
            self.backend_pid = struct.unpack("!I", message[5:9])[0]
        if message[:1] == b"Z":
            self.reach("after")
        self.pass_on(self.client, message)

    def pass_on(self, line: socket.socket, message: bytes) -> None:
        if message[:1] == b"c":
            self.reach("end")
        if message[:1] == b"d":
            until_mid = MID_COPY_BYTES - self.copied
            self.copied += len(message)
            if 0 < until_mid <= len(message):
                self.send(line, message[:until_mid])
                message = message[until_mid:]
                self.reach("mid")
        self.send(line, message)

    def send(self, line: socket.socket, message: bytes) -> None:
        while message and not self.proxy.stalled:
            self.obey()
            if select.select([], [line], [], TICK)[1]:
                message = message[line.send(message):]

    def begin_step(self, text: str) -> None:
        self.step, self.copied = self.proxy.number(text), 0
        self.reach("before")

    def reach(self, when: str) -> None:
        self.proxy.hook(Moment(self.proxy.side, self.step, when))
        self.obey()


def close(line: socket.socket, hard: bool) -> None:
    """Close a socket; the hard way the peer sees a reset, as from a cut line or a killed server."""
    if hard:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.close()


class Proxy:
    """What the client connects to instead of `target`. Usable for run after run; see reset()."""

    def __init__(self, side: str, port: int):
        self.side, self.target = side, ("127.0.0.1", port)
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(64)
        self.port = self.listener.getsockname()[1]
        self.links = []  # type: List[Link]
        self.reset()
        self.acceptor = threading.Thread(target=self.accept, daemon=True)
        self.acceptor.start()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: Any) -> None:
        self.cut()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.acceptor.join()
        self.listener.close()

    def accept(self) -> None:
        while True:
            try:
                client = self.listener.accept()[0]
            except OSError:
                return
            link = Link(self, client)
            self.links.append(link)
            link.start()

    def reset(self, hook: Callable[[Moment], None] = lambda moment: None,
              slow_at: Optional[Moment] = None, slow: bytes = SLOW) -> None:
        """Forget the last run. `slow_at` names the moment at which a statement shall take for ever."""
        self.stalled = False
        self.cut()
        self.links = []
        self.steps = []  # type: List[str]
        self.hook, self.slow_at, self.slow = hook, slow_at, slow

    def number(self, text: str) -> int:
        self.steps.append(" ".join(text.split()))
        return len(self.steps) - 1

    def slow_down(self, moment: Moment) -> bytes:
        return self.slow if moment == self.slow_at else b""

    def is_in_use(self) -> bool:
        """Whether a client is connected, beyond a cancel request."""
        return any(not link.ended.is_set() and not link.is_cancel for link in self.links)

    def backends(self) -> List[int]:
        return [link.backend_pid for link in self.links if link.backend_pid]

    def stall(self) -> None:
        """Swallow everything in both directions from now on, and keep every connection open."""
        self.stalled = True

    def cut(self) -> None:
        """Reset every connection, in both directions. New ones are let through."""
        for link in self.links:
            link.cut_wanted = True
        for link in self.links:
            if link is not threading.current_thread() and not link.ended.wait(5):
                raise RuntimeError("a connection through the proxy of the %s did not end" % self.side)
