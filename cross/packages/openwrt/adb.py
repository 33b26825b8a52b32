"""Writes a package for apk-tools 3, as OpenWrt 25.12 and later install, for cross/packages/apk.sh: adb.py OUT FOLDER INFO...

FOLDER is what is installed. INFO is KEY=VALUE: name, version, description, arch, license, origin, maintainer and
build-time, or SCRIPT=FILE with a script of the package (post-install, pre-deinstall, ...). The format is that of the manual
page apk-v3(5) of apk-tools: a tree of values that refer to each other by offset, then the contents of the files. The same
input makes the same bytes. All files belong to root.
"""

import hashlib
import os
import stat
import struct
import sys
import zlib
from pathlib import Path

INT, INT_32, BLOB_8, BLOB_16, BLOB_32, ARRAY, OBJECT = (kind << 28 for kind in (1, 2, 8, 9, 10, 13, 14))
NULL = 0

# Numbers of the fields of each kind of object, from 1.
INFO = ["name", "version", "hashes", "description", "arch", "license", "origin", "maintainer", "url", "repo-commit", "build-time",
        "installed-size"]
ACL = ["mode", "user", "group"]
FILE = ["name", "acl", "size", "mtime", "hash", "target"]
FOLDER = ["name", "acl", "files"]
SCRIPTS = ["trigger", "pre-install", "post-install", "pre-deinstall", "post-deinstall", "pre-upgrade", "post-upgrade"]
PACKAGE = ["info", "paths", "scripts"]

# How much of the SHA-256 of the whole tree identifies a package.
ID_BYTES = 20


class Tree:
    """The values. Each method adds one and returns the word that stands for it."""

    def __init__(self) -> None:
        self.data = bytearray(8)  # the version, 0, and the root
        self.known: dict[bytes, int] = {}

    def _add(self, kind: int, content: bytes, alignment: int) -> int:
        self.data += bytes(-len(self.data) % alignment)
        offset = len(self.data)
        self.data += content
        return kind | offset

    def number(self, value: int) -> int:
        return INT | value if value < 1 << 28 else self._add(INT_32, struct.pack("<I", value), 4)

    def blob(self, content: bytes) -> int:
        if not content:
            return NULL
        if content not in self.known:
            if len(content) < 1 << 8:
                self.known[content] = self._add(BLOB_8, struct.pack("<B", len(content)) + content, 1)
            elif len(content) < 1 << 16:
                self.known[content] = self._add(BLOB_16, struct.pack("<H", len(content)) + content, 2)
            else:
                self.known[content] = self._add(BLOB_32, struct.pack("<I", len(content)) + content, 4)
        return self.known[content]

    def text(self, value: str) -> int:
        return self.blob(value.encode())

    def array(self, words: list[int]) -> int:
        return self._add(ARRAY, struct.pack(f"<{len(words) + 1}I", len(words) + 1, *words), 4) if words else NULL

    def object(self, fields: list[str], values: dict[str, int]) -> int:
        words = [values.get(field, NULL) for field in fields]
        while words and words[-1] == NULL:
            words.pop()
        return self._add(OBJECT, struct.pack(f"<{len(words) + 1}I", len(words) + 1, *words), 4)

    def acl(self, mode: int) -> int:
        return self.object(ACL, {"mode": self.number(mode), "user": self.text("root"), "group": self.text("root")})

    def finish(self, root: int) -> bytes:
        struct.pack_into("<I", self.data, 4, root)
        return bytes(self.data)


def block(kind: int, content: bytes) -> bytes:
    """A block, which fills a multiple of 8 bytes."""
    whole = struct.pack("<I", kind << 30 | len(content) + 4) + content
    return whole + bytes(-len(whole) % 8)


def add_file(tree: Tree, path: Path, epoch: int) -> int:
    status = path.lstat()
    values = {"name": tree.text(path.name), "acl": tree.acl(status.st_mode & 0o7777), "mtime": tree.number(epoch)}
    if path.is_symlink():
        values["target"] = tree.blob(struct.pack("<H", stat.S_IFLNK) + os.readlink(path).encode())
        # As apk-tools counts it: the length of the target.
        values["size"] = tree.number(status.st_size)
    else:
        content = path.read_bytes()
        values["size"] = tree.number(len(content))
        values["hash"] = tree.blob(hashlib.sha256(content).digest())
    return tree.object(FILE, values)


def main(out: str, root: str, *words: str) -> None:
    info = dict(word.split("=", 1) for word in words)
    epoch = int(info["build-time"])
    tree, contents, installed = Tree(), [], 0
    # Both lists must be sorted by name; the root has none.
    folders = sorted((folder.relative_to(root), sorted(Path(entry) for entry in files))
                     for folder, _, files in ((Path(folder), subs, files) for folder, subs, files in os.walk(root)))
    paths = []
    for folder, files in folders:
        words_of_files = []
        for name in files:
            path = root / folder / name
            words_of_files.append(add_file(tree, path, epoch))
            if not path.is_symlink():
                content = path.read_bytes()
                installed += len(content)
                if content:
                    contents.append(block(2, struct.pack("<II", len(paths) + 1, len(words_of_files)) + content))
        paths.append(tree.object(FOLDER, {
            "name": tree.text("" if folder == Path() else str(folder)),
            "acl": tree.acl((root / folder).stat().st_mode & 0o7777),
            "files": tree.array(words_of_files),
        }))
    identity = tree._add(BLOB_8, struct.pack("<B", ID_BYTES) + bytes(ID_BYTES), 1)
    values = {key: tree.text(value) for key, value in info.items() if key in INFO and key != "build-time"}
    values |= {"build-time": tree.number(epoch), "installed-size": tree.number(installed), "hashes": identity}
    scripts = {key: tree.blob(Path(value).read_bytes()) for key, value in info.items() if key in SCRIPTS}
    package = {"info": tree.object(INFO, values), "paths": tree.array(paths)}
    if scripts:
        package["scripts"] = tree.object(SCRIPTS, scripts)
    data = bytearray(tree.finish(tree.object(PACKAGE, package)))
    start = (identity & (1 << 28) - 1) + 1
    data[start:start + ID_BYTES] = hashlib.sha256(data).digest()[:ID_BYTES]
    whole = b"ADB." + b"pckg" + block(0, bytes(data)) + b"".join(contents)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    Path(out).write_bytes(b"ADBd" + deflate.compress(whole) + deflate.flush())


if __name__ == "__main__":
    main(*sys.argv[1:])
