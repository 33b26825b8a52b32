"""Logins that no client sends: as many, as quickly and from wherever one likes.

As a program, `junk.py PORT THREADS SPREAD` guesses until its standard input ends, then prints how often it got which
status. A process of its own, as threads of this language would slow down what is being measured.
"""

import collections
import http.client
import itertools
import json
import sys
import threading
from types import SimpleNamespace

import zstandard


def log_in(server, user: str, password: str, address: str = "") -> int:
    """The status of one login; `address` is whom a proxy on this machine would speak for."""
    header = {"v": 11, "k": "", "c": "26.09.3,29bb700b,linux", "s": ""}
    headers = {"anki-sync": json.dumps(header)} | ({"X-Forwarded-For": address} if address else {})
    body = zstandard.compress(json.dumps({"u": user, "p": password}).encode())
    conn = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        conn.request("POST", "/sync/hostKey", body, headers)
        return conn.getresponse().status
    finally:
        conn.close()


def storm(port: int, threads: int, spread: bool) -> None:
    server, numbers, statuses, stop = SimpleNamespace(port=port), itertools.count(), collections.Counter(), threading.Event()

    def guess():
        while not stop.is_set():
            number = next(numbers)
            address = f"10.{number // 40000 % 200}.{number // 200 % 200}.{number % 200}" if spread else "192.0.2.1"
            statuses[log_in(server, "bob", "guess", address)] += 1
            if number == 2 * threads:
                print("blowing", flush=True)

    guessing = [threading.Thread(target=guess) for _ in range(threads)]
    for thread in guessing:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in guessing:
        thread.join()
    print(json.dumps(statuses))


if __name__ == "__main__":
    storm(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True")
