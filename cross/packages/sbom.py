#!/usr/bin/env python3
"""Prints the list of parts (SBOM, CycloneDX 1.5) of the program: cross/packages/sbom.py

Every crate that is linked in, with version, licence and checksum, from `cargo metadata` and Cargo.lock. cargo-cyclonedx would do it,
but writes the folder of the clone into the list, which is to be the same bytes in every clone.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def main() -> None:
    target = "x86_64-unknown-linux-musl"
    metadata = json.loads(subprocess.check_output(
        ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target], cwd=REPO))
    checksums = {
        (name, version): checksum
        for name, version, checksum in re.findall(
            r'name = "([^"]+)"\nversion = "([^"]+)"\nsource = "[^"]+"\nchecksum = "([0-9a-f]{64})"',
            (REPO / "Cargo.lock").read_text())
    }
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]

    def linked(identity: str) -> list[str]:
        """What a crate depends on in the program, and not only in its build or its tests."""
        return [dependency["pkg"] for dependency in nodes[identity]["deps"]
                if any(kind["kind"] is None for kind in dependency["dep_kinds"])]

    found, todo = {root}, [root]
    while todo:
        new = set(linked(todo.pop())) - found
        found |= new
        todo += new

    def url(identity: str) -> str:
        return f"pkg:cargo/{packages[identity]['name']}@{packages[identity]['version']}"

    def component(identity: str) -> dict:
        package = packages[identity]
        described = {
            "type": "application" if identity == root else "library",
            "bom-ref": url(identity),
            "name": package["name"],
            "version": package["version"],
            "purl": url(identity),
            "licenses": [{"expression": (package["license"] or "").replace("/", " OR ")}],
        }
        checksum = checksums.get((package["name"], package["version"]))
        if checksum:
            described["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        return described

    parts = sorted(found - {root}, key=url)
    json.dump({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": component(root)},
        "components": [component(identity) for identity in parts],
        "dependencies": [{"ref": url(identity), "dependsOn": sorted(url(needed) for needed in linked(identity))}
                         for identity in [root, *parts]],
    }, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
