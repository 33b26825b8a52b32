"""Writes container images without an engine, for cross/packages/image.sh: make.py --version V --revision COMMIT --epoch SECS
--out FOLDER PLATFORM=PROGRAM...

An image is the static program in an otherwise empty root. For each platform a file is written that `docker load` and
`podman load` take (an OCI layout that has the older manifest.json, too), and one with all platforms for
`skopeo copy --all oci-archive:FILE docker://...`. The same input makes the same bytes.
"""

import argparse
import gzip
import hashlib
import io
import json
import tarfile
import time
from pathlib import Path

USER = 10001
PORT = 8080
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def tar(entries: list[tuple[str, bytes | str | None, int, int]], epoch: int) -> bytes:
    """A tar of (name, content, mode, owner): bytes make a file, a text a link to it, None a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content, mode, owner in entries:
            info = tarfile.TarInfo(name)
            info.mode, info.uid, info.gid, info.mtime = mode, owner, owner, epoch
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


class Layout:
    """An OCI layout in memory."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def add(self, media_type: str, content: bytes | dict) -> dict:
        """Adds a blob; the result describes it."""
        if isinstance(content, dict):
            content = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        digest = hashlib.sha256(content).hexdigest()
        self.blobs[digest] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def archive(self, manifests: list[dict], legacy: list[dict], epoch: int) -> bytes:
        """The file. `legacy` is what loaders that know no OCI layout read."""
        files = {
            "oci-layout": {"imageLayoutVersion": "1.0.0"},
            "index.json": {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests},
        }
        if legacy:
            files["manifest.json"] = legacy
        entries = [("blobs", None, 0o755, 0), ("blobs/sha256", None, 0o755, 0)]
        entries += [(f"blobs/sha256/{digest}", content, 0o644, 0) for digest, content in sorted(self.blobs.items())]
        entries += [(name, json.dumps(value, sort_keys=True).encode(), 0o644, 0) for name, value in files.items()]
        return tar(entries, epoch)


def describe(platform: str) -> dict:
    """linux/arm/v6 as the specification writes it."""
    system, architecture, *variant = platform.split("/")
    return {"os": system, "architecture": architecture} | ({"variant": variant[0]} if variant else {})


def add_image(layout: Layout, platform: str, program: bytes, options: argparse.Namespace) -> tuple[dict, dict]:
    """Adds one platform. The results describe manifest and configuration."""
    root = tar([
        ("ankipi", program, 0o755, 0),
        ("anki-sync-server", "ankipi", 0o777, 0),
        ("data", None, 0o700, USER),
        ("tmp", None, 0o1777, 0),  # what SQLite sorts goes here
    ], options.epoch)
    layer = layout.add("application/vnd.oci.image.layer.v1.tar+gzip", gzip.compress(root, 9, mtime=0))
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(options.epoch))
    labels = {
        "org.opencontainers.image.title": "ankipi",
        "org.opencontainers.image.description": "Sync server for Anki that fits small boards",
        "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
        "org.opencontainers.image.version": options.version,
        "org.opencontainers.image.revision": options.revision,
        "org.opencontainers.image.created": created,
    }
    config = layout.add("application/vnd.oci.image.config.v1+json", describe(platform) | {
        "created": created,
        "config": {
            "User": f"{USER}:{USER}",
            "ExposedPorts": {f"{PORT}/tcp": {}},
            "Env": ["SYNC_BASE=/data"],
            "Entrypoint": ["/ankipi"],
            "Volumes": {"/data": {}},
            "WorkingDir": "/",
            "StopSignal": "SIGTERM",
            "Labels": labels,
            # Docker's own addition to the format. Times are in nanoseconds.
            "Healthcheck": {"Test": ["CMD", "/ankipi", "--healthcheck"], "Interval": 60 * 10**9, "Timeout": 10 * 10**9},
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(root).hexdigest()}"]},
        "history": [{"created": created, "created_by": "cross/packages/image.sh"}],
    })
    manifest = layout.add(MANIFEST, {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]})
    legacy = {
        "Config": path_of(config),
        "RepoTags": [f"ankipi:{options.version}", "ankipi:latest"],
        "Layers": [path_of(layer)],
    }
    return manifest | {"platform": describe(platform)}, legacy


def path_of(blob: dict) -> str:
    return "blobs/" + blob["digest"].replace(":", "/")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--version", required=True)
    parser.add_argument("--revision", required=True)
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("programs", nargs="+", metavar="PLATFORM=PROGRAM")
    options = parser.parse_args()
    everything, manifests = Layout(), []
    # Docker with containerd's store and podman take the name from the first; without it podman calls the image "0.2.0".
    name = {"io.containerd.image.name": "docker.io/library/ankipi:latest", "org.opencontainers.image.ref.name": options.version}
    tag = {"annotations": name}
    for word in options.programs:
        platform, path = word.split("=", 1)
        program = Path(path).read_bytes()
        manifests.append(add_image(everything, platform, program, options)[0])
        single = Layout()
        manifest, legacy = add_image(single, platform, program, options)
        write(options, platform.removeprefix("linux/").replace("/", ""), single.archive([manifest | tag], [legacy], options.epoch))
    if len(manifests) > 1:
        index = everything.add(INDEX, {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
        write(options, "all", everything.archive([index | tag], [], options.epoch))


def write(options: argparse.Namespace, name: str, content: bytes) -> None:
    path = options.out / f"ankipi-{options.version}-image-{name}.tar"
    path.with_suffix(".tar.new").write_bytes(content)
    path.with_suffix(".tar.new").replace(path)
    print(f"{len(content):9} bytes  {path}")


if __name__ == "__main__":
    main()
