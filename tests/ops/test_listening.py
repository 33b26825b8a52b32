"""Where the server listens: several addresses, Unix sockets, sockets that it is given, and how it ends when idle."""

import os
import socket
import subprocess
import time

import pytest
from anki.collection import Collection
from anki.errors import NetworkError

from commands import run
from server import command, free_port
from test_proxies import snippet


def has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6).bind(("::1", 0))
        return True
    except OSError:
        return False


def answers(family, address) -> bool:
    with socket.socket(family) as sock:
        sock.settimeout(10)
        try:
            sock.connect(address)
        except OSError:
            return False
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        return sock.recv(100).startswith(b"HTTP/1.1 200 ")


def test_https_typed_for_http_is_called_so(new_server, tmp_path):
    server = new_server("anna:secret")
    collection = Collection(str(tmp_path / "collection.anki2"))
    for _ in range(8):  # the random bytes of a handshake may hold the end of a line
        with pytest.raises(NetworkError):
            collection.sync_login("anna", "secret", server.url.replace("http://", "https://"))
    collection.close()
    refused = [line for line in server.log().splitlines() if "refused" in line]
    assert refused and all("https where only http is served: type http://" in line for line in refused), refused


def test_several_addresses_and_a_unix_socket_at_once(tmp_path, new_server, new_account):
    path = tmp_path / "ankipi.sock"
    addresses = ["127.0.0.1", "127.0.0.2", f"unix:{path}"] + ["::1"] * has_ipv6()
    server = new_server("anna:secret", SYNC_HOST=", ".join(addresses))
    assert answers(socket.AF_INET, ("127.0.0.1", server.port)) and answers(socket.AF_INET, ("127.0.0.2", server.port))
    assert not answers(socket.AF_INET, ("127.0.0.3", server.port))
    assert answers(socket.AF_UNIX, str(path))
    assert not has_ipv6() or answers(socket.AF_INET6, ("::1", server.port))
    assert f"http://127.0.0.1:{server.port}/ and http://127.0.0.2:{server.port}/ and unix:{path}" in server.log()
    # Killed, it leaves the file of the socket, which must not be in its way.
    server.power_cut()
    assert answers(socket.AF_UNIX, str(path))
    second = run(server, "--base", str(tmp_path / "other"))
    assert second.returncode == 1 and "another program has this port" in second.stderr, second.stderr
    server.stop()
    assert not path.exists()


def test_nginx_through_a_unix_socket(tmp_path, new_server, new_account, nginx):
    path = tmp_path / "ankipi.sock"
    server = new_server("anna:secret", SYNC_HOST=f"127.0.0.1,unix:{path}", SYNC_IP_HEADER="X-Real-IP")
    site = snippet("nginx.conf", server).replace(f"http://127.0.0.1:{server.port}", f"http://unix:{path}")
    proxy = nginx(site)
    account = new_account(server, "anna", "secret")
    desk = account.device("desk")
    desk.use(proxy.url)
    desk.add_notes(500, "x" * 3000)
    desk.upload()
    desk.add_note("more")
    desk.sync()
    phone = account.device("phone")
    phone.use(proxy.url)
    phone.download()
    assert phone.fronts() == desk.fronts()


class Activated:
    """What systemd does with a socket unit: it listens, and starts the service with the first connection."""

    def __init__(self, tmp_path, *families, **env):
        self.base, self.log_path = tmp_path / "base", tmp_path / "log"
        self.sockets = []
        for family in families:
            sock = socket.socket(family)
            sock.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "s"))
            sock.listen(16)
            self.sockets.append(sock)
        self.env = {"SYNC_BASE": str(self.base), "SYNC_USER1": "anna:secret", "PATH": "/usr/bin:/bin"} | env

    def start(self) -> None:
        """In a shell that sets LISTEN_PID to its own number and becomes the server."""
        script = 'export LISTEN_PID=$$; exec "$0"'
        fds = [sock.fileno() for sock in self.sockets]
        moves = " ".join(f"{3 + n}<&{fd + 100}" for n, fd in enumerate(fds))
        high = [os.dup2(fd, fd + 100, inheritable=True) for fd in fds]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", f"exec {moves}; {script}", *command(official=False)], stderr=log, pass_fds=high,
                env=self.env | {"LISTEN_FDS": str(len(fds))})
        for fd in high:
            os.close(fd)


def test_sockets_that_are_handed_over_are_taken(tmp_path):
    service = Activated(tmp_path, socket.AF_INET, socket.AF_UNIX)
    service.start()
    try:
        assert answers(socket.AF_INET, service.sockets[0].getsockname())
        assert answers(socket.AF_UNIX, service.sockets[1].getsockname())
        log = service.log_path.read_text()
        assert f"listens on http://127.0.0.1:{service.sockets[0].getsockname()[1]}/ and unix:{tmp_path}/s" in log, log
    finally:
        service.process.terminate()
        assert service.process.wait(10) == 0
    # It is not the server's to remove.
    assert (tmp_path / "s").exists()


def test_idle_it_ends_and_the_next_connection_finds_it_started_again(tmp_path):
    service = Activated(tmp_path, socket.AF_INET, SYNC_IDLE_EXIT_SECS="1")
    for _ in range(2):
        service.start()
        assert answers(socket.AF_INET, service.sockets[0].getsockname())
        assert service.process.wait(10) == 0
    service.start()
    # While there is a connection it stays.
    with socket.create_connection(service.sockets[0].getsockname()):
        time.sleep(1.5)
        assert service.process.poll() is None
    service.process.terminate()
    assert service.process.wait(10) == 0


def test_variables_of_another_process_are_not_obeyed(tmp_path, new_server):
    server = new_server("anna:secret", LISTEN_PID="1", LISTEN_FDS="3")
    assert server.healthy()


@pytest.mark.parametrize("host, expected", [
    ("nowhere", "is not an address"), ("unix:relative", "is not an address"), ("unix:/nowhere/x", "folder does not exist"),
    ("203.0.113.7", "does not have that address")])
def test_what_cannot_be_listened_on_is_named(tmp_path, host, expected):
    env = {"SYNC_BASE": str(tmp_path), "SYNC_HOST": host, "SYNC_PORT": str(free_port())}
    ended = subprocess.run(command(official=False), env=env, capture_output=True, text=True, timeout=20)
    assert ended.returncode == 1 and expected in ended.stderr, ended.stderr
