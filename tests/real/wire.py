"""A scripted client of protocol 11 and of those before, for requests that the real client would not make."""

import gzip
import http.client
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import zstandard

from account import Account
from proxy import chunk


@dataclass
class Answer:
    status: int
    body: bytes
    # Seconds between two signs of life: the request's last byte, the reply's head, each decoded byte.
    gaps: list[float] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.body.decode()


def request(account: Account, method: str, payload: bytes | dict, hkey: str = "", skey: str = "abc123", timeout: float = 120) -> Answer:
    raw = json.dumps(payload).encode() if isinstance(payload, dict) else payload
    return request_raw(account, method, zstandard.compress(raw), hkey, skey, timeout)


def break_off(account: Account, method: str, body: bytes, hkey: str) -> None:
    """Sends this much of a request, then closes its side of the connection."""
    conn = http.client.HTTPConnection("127.0.0.1", account.server.port, timeout=10)
    conn.putrequest("POST", path_of(method))
    for name, value in headers(hkey).items():
        conn.putheader(name, value)
    conn.endheaders()
    conn.send(chunked(body).removesuffix(b"0\r\n\r\n"))
    conn.sock.shutdown(socket.SHUT_WR)
    # Whatever the server says to that; with its end of the connection it has taken note.
    while conn.sock.recv(4096):
        pass
    conn.close()


def path_of(method: str) -> str:
    return method if method.startswith("/") else f"/sync/{method}"


def headers(hkey: str, skey: str = "abc123") -> dict[str, str]:
    return {"anki-sync": json.dumps({"v": 11, "k": hkey, "c": "26.09.3,00000000,linux", "s": skey}),
            "content-type": "application/octet-stream", "transfer-encoding": "chunked"}


def chunked(body: bytes) -> bytes:
    blocks = [body[at:at + 65536] for at in range(0, len(body), 65536)]
    return b"".join(chunk(block) for block in [*blocks, b""])


def request_raw(account: Account, method: str, body: bytes, hkey: str, skey: str = "abc123", timeout: float = 120) -> Answer:
    decoder = zstandard.ZstdDecompressor().decompressobj()
    answer = exchange(account, method, chunked(body), headers(hkey, skey), timeout, decoder.decompress)
    assert answer.status != 200 or decoder.eof, "the reply ended in the middle of a frame"
    return answer


def request_form(account: Account, method: str, data: bytes, hkey: str, timeout: float = 120) -> Answer:
    """A request as clients of protocol 9 make it."""
    parts = [("k", hkey.encode()), ("c", b"1"), ("data", gzip.compress(data))]
    form = b"".join(b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value) for name, value in parts)
    return exchange(account, method, form + b"--x--\r\n", {"content-type": "multipart/form-data; boundary=x"}, timeout)


def exchange(account: Account, method: str, body: bytes, heads: dict[str, str], timeout: float,
             decode: Callable[[bytes], bytes] | None = None) -> Answer:
    conn = http.client.HTTPConnection("127.0.0.1", account.server.port, timeout=timeout)
    try:
        try:
            conn.request("POST", path_of(method), body, heads)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has answered before it heard all
        life, gaps = time.monotonic(), []

        def alive() -> None:
            nonlocal life
            gaps.append(time.monotonic() - life)
            life = time.monotonic()

        answer = conn.getresponse()
        alive()
        if answer.status != 200:
            return Answer(answer.status, answer.read(), gaps)
        assert answer.getheader("anki-original-size", "").isdigit() == bool(decode), "the client would refuse this"
        decoded = b""
        while wire := answer.read1(65536):
            piece = decode(wire) if decode else wire
            decoded += piece
            # The client's timer only counts what it could decode.
            if piece:
                alive()
        return Answer(200, decoded, gaps)
    finally:
        conn.close()
