"""A proxy between a device and its server that fails, or lets something else happen, where a story tells it to.

What happens, happens in the proxy's thread while the device waits for its answer, so stories need no threads and
no waiting: `proxy.before("chunk", phone.sync)` is a whole sync of the phone between two requests of the desk.
"""

import http.client
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from server import Server

BLOCK = 64 * 1024
# An event returns this to cut the connection. Every later connection is cut as well, until `mend`.
CUT = object()


class Proxy:
    def __init__(self, server: Server):
        self.server = server
        self.events: dict[tuple[str, str], Callable[[], object]] = {}
        self.seen: list[str] = []
        self.failure: BaseException | None = None
        self.is_cut = False
        self.listener = ThreadingHTTPServer(("127.0.0.1", 0), type("Way", (_Way,), {"proxy": self}))
        self.listener.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.listener.server_port}/"
        # A short poll only makes `close` quick.
        threading.Thread(target=self.listener.serve_forever, args=(0.01,), daemon=True).start()

    def before(self, method: str, event: Callable[[], object]) -> None:
        """Once, when the device calls the method, before the server hears of it. What the event returns is the answer
        in place of the server's: a status, CUT, or None to go on."""
        self.events[method, "before"] = event

    def after(self, method: str, event: Callable[[], object]) -> None:
        """Once, when the server has answered the method, before the device hears of it."""
        self.events[method, "after"] = event

    def midway(self, method: str, event: Callable[[], object]) -> None:
        """Once, when the device has the first block of the answer and the server cannot have sent all of it."""
        self.events[method, "midway"] = event

    def mend(self) -> None:
        self.is_cut = False

    def close(self) -> None:
        self.listener.shutdown()
        self.listener.server_close()
        if self.failure:
            raise self.failure
        assert not self.events, f"the story never came to {list(self.events)}; seen: {self.seen}"

    def happen(self, method: str, moment: str) -> object:
        event = self.events.pop((method, moment), None)
        try:
            answer = event() if event else None
        except BaseException as err:
            self.failure, answer = err, CUT
        self.is_cut = self.is_cut or answer is CUT
        return CUT if self.is_cut else answer


def chunk(block: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(block), block)


class _Way(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        method, body = self.path.rsplit("/", 1)[-1], self.read_body()
        self.proxy.seen.append(method)
        if self.answered(self.proxy.happen(method, "before")):
            return
        to_server = http.client.HTTPConnection("127.0.0.1", self.proxy.server.port, timeout=120)
        try:
            to_server.sock = self.connect()
            headers = {name: value for name, value in self.headers.items()
                       if name.lower() not in ("host", "connection")}
            # In one piece: the official server does not read on to the last chunk, and closes a connection on which that comes
            # late, together with what it has yet to send.
            to_server.request("POST", self.path, body, headers)
            answer = to_server.getresponse()
            if not self.answered(self.proxy.happen(method, "after")):
                self.pass_on(method, answer)
        except OSError:
            self.answered(CUT)  # the server went away, so the device sees its connection go, too
        finally:
            to_server.close()

    def connect(self) -> socket.socket:
        sock = socket.socket()
        # With a small window the server soon notices that a device is slow.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BLOCK)
        sock.settimeout(120)
        sock.connect(("127.0.0.1", self.proxy.server.port))
        return sock

    def read_body(self) -> bytes:
        """The body as it is on the line, in the chunks of the client."""
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        line = []
        while True:
            line.append(self.rfile.readline())
            size = int(line[-1], 16)
            line.append(self.rfile.read(size + 2))
            if not size:
                return b"".join(line)

    def answered(self, answer: object) -> bool:
        """Gives the answer that is not the server's, if there is one."""
        if answer is CUT:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif answer:
            self.send_response(int(answer))
            self.send_header("content-length", "0")
            self.end_headers()
        return bool(answer)

    def pass_on(self, method: str, answer: http.client.HTTPResponse) -> None:
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "content-length", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        block = answer.read(BLOCK)
        while block:
            after = answer.read(BLOCK)
            # The client drops the connection if it has all of the frame but not yet the last chunk.
            self.wfile.write(chunk(block) + (b"" if after else chunk(b"")))
            block = after
            self.proxy.happen(method, "midway")

    def log_message(self, *_) -> None:
        pass
