"""A ping service of our own, which remembers what it was told."""

import contextlib
import http.server
import threading

TOKEN = "token-4711"


class PingServer:
    """Answers as it was told to: with a status, or not at all."""

    def __init__(self, status=200, slow_start=0):
        self.told, self.status, self.closing = [], status, threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                if self.path.endswith("/start"):
                    server.closing.wait(slow_start)  # as a handshake may be
                server.told.append((self.path, body))
                if server.status is None:
                    server.closing.wait(60)
                    return
                self.send_response(server.status)
                self.end_headers()

            def log_message(self, *_):
                pass
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = "http://127.0.0.1:%d/%s" % (self.server.server_address[1], TOKEN)

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


def ping_server(status=200, slow_start=0):
    return contextlib.closing(PingServer(status, slow_start))
