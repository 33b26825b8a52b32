"""Each way in has a test that goes it to a first sync of a real client. Those that need another machine or a package are in
cross/checks; this list keeps one from being lost."""

import re

import pytest

from server import REPO

WAYS = {
    "AnkiWeb": ("tests/real/test_takeover.py", "def test_from_ankiweb_as_docs_ways_in_tells"),
    "a package of a collection (.colpkg)": ("tests/ops/test_import_colpkg.py", "def test_a_package_of_the_real_client_is_there_for_every_device"),
    "the official server's folder": ("tests/real/test_takeover.py", "def test_the_official_servers_folder_is_taken_over_and_given_back"),
    "ankisyncd": ("tests/ops/test_import.py", 'ids=["ankisyncd", "anki-sync-server-rs"]'),
    "anki-sync-server-rs": ("tests/ops/test_import.py", 'ids=["ankisyncd", "anki-sync-server-rs"]'),
    "a .deb": ("cross/checks/deb.sh", "sync"),
    "OpenWrt": ("cross/checks/openwrt.sh", "sync"),
    "a container": ("cross/checks/image.sh", "sync"),
    "Arch and Alpine (the recipes)": ("cross/checks/recipes.sh", "PKGBUILD"),
    "source": ("tests/ops/test_commands_of_docs.py", "cargo run --release"),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_in_is_gone_by_a_test(way):
    path, what = WAYS[way]
    assert what in (REPO / path).read_text(), way


def test_each_check_of_a_package_syncs_with_a_real_client_and_runs_in_ci():
    runs = (REPO / ".ci/run").read_text()
    for path in ("deb.sh", "openwrt.sh", "image.sh"):
        script = (REPO / "cross/checks" / path).read_text()
        assert re.search(r"checks/sync\.py|sync\.py", script), path
        assert f"cross/checks/{path}" in runs, path
