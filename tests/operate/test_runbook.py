"""docs/operating.md: its commands exist, its links work, and every place is explained."""

import re
import shlex

import click
import pytest

from relay.operate.commands import main
from relay.operate.whereabouts import Place
from tests.function import ROOT

RUNBOOK = (ROOT / "docs" / "operating.md").read_text()
COMMANDS = sorted(
    set(re.findall(r"python -m relay ((?:inspect|dead-|rec|check)[^`#\n]*)", RUNBOOK))
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_can_be_parsed(command: str) -> None:
    group: click.Group = main
    arguments = shlex.split(command)
    while isinstance(found := group.commands[arguments.pop(0)], click.Group):
        group = found
    found.make_context("relay", arguments)  # raises click.UsageError if it can't be parsed


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("place", Place)
def test_every_place_is_explained(place: Place) -> None:
    assert f"| `{place}` |" in RUNBOOK


def test_links_within_the_page_lead_to_headings() -> None:
    headings = re.findall(r"^## (.+)$", RUNBOOK, re.MULTILINE)
    anchors = {re.sub(r"[^a-z ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\(#([a-z-]+)\)", RUNBOOK)) <= anchors
