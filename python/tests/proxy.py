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
from collections import namedtuple
from contextlib import AbstractContextManager, suppress

NO_ENCRYPTION, CANCEL_REQUEST = (80877103, 80877104), 80877102
MID_COPY_BYTES = 3000
TICK = 0.02
# Small, so that a COPY that is held back is held back at the server too, and not in the network.
BUFFER_BYTES = 16384
# A statement of ours in front of the client's: the server is then at work for as long as a test needs.
SLOW = b"SELECT pg_catalog.pg_sleep(3600); "
Moment = namedtuple("Moment", "side index when")


class Link(threading.Thread):
    """One connection of a client, and its counterpart to the server. One thread owns both sockets."""

    def __init__(self, proxy, client):
        super().__init__(daemon=True)
        self.proxy, self.client, self.server = proxy, client, socket.socket()
        self.unread = {self.client: b"", self.server: b""}  # what has arrived of a message
        self.step, self.copied, self.backend_pid = None, 0, None
        self.is_starting_up, self.is_logged_in, self.is_cancel = True, False, False
        self.cut_wanted, self.ended = False, threading.Event()

    def run(self):
        try:
            self.carry()
        except OSError:  # the peer sees a reset, as from a cut line or a killed server
            for line in self.unread:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            for line in self.unread:
                line.close()
            self.ended.set()

    def carry(self):
        """Pass messages on until either end closes; a stalled proxy swallows them and keeps both open."""
        lines, was_stalled = [self.client], self.proxy.stalled
        if not was_stalled:
            self.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            self.server.connect(self.proxy.target)
            lines.append(self.server)
        for line in lines:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.setblocking(False)
        while True:
            self.obey()
            if was_stalled and not self.proxy.stalled:
                raise ConnectionError("what was swallowed is missing; nothing can go on from here")
            was_stalled = was_stalled or self.proxy.stalled
            for line in select.select(lines, [], [], TICK)[0]:
                data = line.recv(65536)
                self.unread[line] += data
                for message in iter(lambda: self.next_message(line), b""):
                    if line is self.client:
                        self.client_says(message)
                    else:
                        self.pass_on(self.client, message)
                if not data:
                    if not self.proxy.stalled:
                        return
                    lines.remove(line)

    def obey(self):
        if self.cut_wanted:
            raise ConnectionError("cut on purpose")

    def next_message(self, line):
        """Cut one whole message off what has arrived; b"" where there is none yet, or nothing passes."""
        data, head = self.unread[line], 0 if line is self.client and self.is_starting_up else 1
        size = head + struct.unpack("!I", data[head:head + 4])[0] if len(data) >= head + 4 else len(data) + 1
        if len(data) < size or self.proxy.stalled:
            return b""
        self.unread[line] = data[size:]
        return data[:size]

    def client_says(self, message):
        if self.is_starting_up:
            code = struct.unpack("!I", message[4:8])[0]
            if code in NO_ENCRYPTION:
                return self.send(self.client, b"N")
            self.is_starting_up, self.is_cancel = False, code == CANCEL_REQUEST
            if not self.is_cancel:
                self.begin_step("login")
        elif message[:1] == b"p" and not self.is_logged_in:
            self.is_logged_in = True
            self.reach("login")
        elif message[:1] == b"Q":
            text = message[5:-1]
            self.begin_step(text.decode(errors="replace"))
            if self.proxy.slow_at == Moment(self.proxy.side, self.step, "during"):
                text = self.proxy.slow + text
                self.send(self.server, b"Q" + struct.pack("!I", len(text) + 5) + text + b"\0")
                return self.reach("during")
        self.pass_on(self.server, message)

    def pass_on(self, line, message):
        kind = message[:1]
        if kind == b"K":  # the server's alone, as Z is
            self.backend_pid = struct.unpack("!I", message[5:9])[0]
        if kind in (b"c", b"Z"):
            self.reach("end" if kind == b"c" else "after")
        if kind == b"d":
            until_mid = MID_COPY_BYTES - self.copied
            self.copied += len(message)
            if 0 < until_mid <= len(message):
                self.send(line, message[:until_mid])
                message = message[until_mid:]
                self.reach("mid")
        self.send(line, message)

    def send(self, line, message):
        while message and not self.proxy.stalled:
            self.obey()
            if select.select([], [line], [], TICK)[1]:
                message = message[line.send(message):]

    def begin_step(self, text):
        self.proxy.steps.append(" ".join(text.split()))
        self.step, self.copied = len(self.proxy.steps) - 1, 0
        self.reach("before")

    def reach(self, when):
        self.proxy.hook(Moment(self.proxy.side, self.step, when))
        self.obey()


class Proxy(AbstractContextManager):
    """What the client connects to instead of `target`. Usable for run after run; see reset()."""

    def __init__(self, side, port):
        self.side, self.target, self.links = side, ("127.0.0.1", port), []
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(64)
        self.port = self.listener.getsockname()[1]
        self.reset()
        self.acceptor = threading.Thread(target=self.accept, daemon=True)
        self.acceptor.start()

    def __exit__(self, *_):
        self.cut()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.acceptor.join()
        self.listener.close()

    def accept(self):
        with suppress(OSError):  # the listener is closed
            while True:
                link = Link(self, self.listener.accept()[0])
                self.links.append(link)
                link.start()

    def reset(self, hook=lambda moment: None, slow_at=None, slow=SLOW):
        """Forget the last run. `slow_at` names the moment at which a statement shall take for ever."""
        self.stalled = False
        self.cut()
        self.links, self.steps = [], []
        self.hook, self.slow_at, self.slow = hook, slow_at, slow

    def is_in_use(self):
        """Whether a client is connected, beyond a cancel request."""
        return any(not link.ended.is_set() and not link.is_cancel for link in self.links)

    def backends(self):
        return [link.backend_pid for link in self.links if link.backend_pid]

    def stall(self):
        """Swallow everything in both directions from now on, and keep every connection open."""
        self.stalled = True

    def cut(self):
        """Reset every connection, in both directions. New ones are let through."""
        for link in self.links:
            link.cut_wanted = True
        for link in self.links:
            if link is not threading.current_thread() and not link.ended.wait(5):
                raise RuntimeError("a connection through the proxy of the %s did not end" % self.side)
