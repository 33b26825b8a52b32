"""Debian's nginx and Caddy, in the foreground, with all their files in a scratch folder."""

import socket
import subprocess
import time
from pathlib import Path

from programs import program  # noqa: F401: stories import it from here
from server import free_port

START_SECS = 20


class ReverseProxy:
    program: str
    package: str

    def __init__(self, path: str, folder: Path, config: str, host: str = "127.0.0.1", scheme: str = "http"):
        """`config` is that of a site; it says LISTEN where the port goes."""
        folder.mkdir()
        self.folder, self.port, self.log_path = folder, free_port(), folder / "log"
        self.url = f"{scheme}://{host}:{self.port}/"
        # Lone surrogates stand for bytes that are no UTF-8.
        config_bytes = self.wrap(config.replace("LISTEN", str(self.port))).encode(errors="surrogateescape")
        (folder / "config").write_bytes(config_bytes)
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen([path, *self.arguments()], stdout=log, stderr=log, cwd=folder, env=self.env())
        deadline = time.monotonic() + START_SECS
        while not self.listens():
            assert self.process.poll() is None, f"{self.program} ended at once:\n{self.log_path.read_text()}"
            assert time.monotonic() < deadline, f"{self.program} does not listen:\n{self.log_path.read_text()}"
            time.sleep(0.01)  # between two questions

    def wrap(self, config: str) -> str:
        raise NotImplementedError

    def arguments(self) -> list[str]:
        raise NotImplementedError

    def env(self) -> dict[str, str]:
        return {"HOME": str(self.folder), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}

    def listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            return True
        except OSError:
            return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


class Nginx(ReverseProxy):
    program, package = "nginx", "nginx-light"

    def wrap(self, config: str) -> str:
        temporary = "\n".join(f"{kind}_temp_path {self.folder}/{kind};"
                              for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        return (f"user root;\nworker_processes 1;\npid {self.folder}/pid;\nerror_log stderr;\n"
                f"events {{}}\nhttp {{\naccess_log off;\n{temporary}\n{config}\n}}\n")

    def arguments(self) -> list[str]:
        return ["-p", str(self.folder), "-c", "config", "-e", "stderr", "-g", "daemon off;"]


class Caddy(ReverseProxy):
    program, package = "caddy", "caddy"

    def wrap(self, config: str) -> str:
        return (f"{{\nadmin off\nskip_install_trust\nauto_https disable_redirects\nstorage file_system {self.folder}/data\n}}\n"
                f"{config}\n")

    def arguments(self) -> list[str]:
        return ["run", "--config", "config", "--adapter", "caddyfile"]

    def root_certificate(self) -> Path:
        """What devices must trust where Caddy signs for itself."""
        return self.folder / "data/pki/authorities/local/root.crt"


class Lighttpd(ReverseProxy):
    program, package = "lighttpd", "lighttpd lighttpd-mod-openssl"

    def wrap(self, config: str) -> str:
        # The main port serves nothing: only the one of the site counts.
        return (f'server.document-root = "{self.folder}"\nserver.bind = "127.0.0.1"\nserver.port = {free_port()}\n'
                f'server.upload-dirs = ( "{self.folder}" )\n{config}\n')

    def arguments(self) -> list[str]:
        return ["-D", "-f", "config"]


class Hitch(ReverseProxy):
    program, package = "hitch", "hitch"

    def wrap(self, config: str) -> str:
        return f"{config}\ndaemon = off\n"

    def arguments(self) -> list[str]:
        return ["--config=config"]
