"""README and docs: links lead somewhere, and each command of ankipi that they name exists, with its options."""

import importlib.machinery
import importlib.util
import re
import subprocess

import pytest

from server import REPO, command

PAGES = sorted([REPO / "README.md", REPO / "SECURITY.md", REPO / "benches/README.md", REPO / "tests/README.md", REPO / "cross/README.md",
                *(REPO / "docs").glob("*.md")])


def anchors(text):
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file.read_text()), f"{page.name}: {target}"


def test_the_readme_is_short():
    """One screen and a half: everything else has a page in docs/, which its table or that of docs/README.md names."""
    assert len((REPO / "README.md").read_text().splitlines()) <= 70
    index = (REPO / "docs/README.md").read_text()
    for page in (REPO / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page


def test_the_table_of_settings_is_that_of_the_help():
    spec = importlib.util.spec_from_loader("make_settings", importlib.machinery.SourceFileLoader("make_settings", str(REPO / "docs/make-settings")))
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    page, program = (REPO / "docs/settings.md").read_text(), command(official=False)[0]
    assert page == make.page(program, page), "docs/make-settings target/release/ankipi"
    named = re.findall(r"^  ([A-Z_]+)  ", help_of("serve"), re.MULTILINE)
    assert len(named) > 20 and all(f"| `{name}` |" in page for name in named)


def help_of(*words):
    ended = subprocess.run([*command(official=False), *words, "--help"], capture_output=True, text=True, env={"ANKIPI_CONFIG": ""})
    return ended.stdout if ended.returncode == 0 else None


def commands_in(text):
    """What follows `ankipi` in code: between backquotes, or on indented lines."""
    found = re.findall(r"`(?:sudo )?ankipi ([^`]+)`", text) + re.findall(r"^    (?:sudo )?ankipi (.*)$", text, re.MULTILINE)
    return [line.split("#")[0].split() for line in found]


def test_commands_exist_with_their_options():
    known = re.findall(r"^  ([a-z-]+(?: [a-z-]+)?)  ", help_of(), re.MULTILINE)
    assert len(known) > 10
    helps, named = {name: help_of(*name.split()) for name in known}, 0
    for page in PAGES:
        for words in commands_in(page.read_text()):
            where = f"{page.name}: ankipi {' '.join(words)}"
            name = next((name for name in (" ".join(words[:2]), words[0]) if name in known), None)
            is_general = words[0].startswith("-") or words[0].isupper() or any(one.startswith(words[0] + " ") for one in known)
            assert name or is_general, where
            if name:
                named += 1
                for option in re.findall(r"(--[a-z-]+)", " ".join(words)):
                    assert option in helps[name], f"{where}: {option}"
    assert named > 15, named
