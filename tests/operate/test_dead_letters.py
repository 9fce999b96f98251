"""`python -m relay dead-letters`: parked events are listed, shown, replayed and discarded."""

import itertools
import json
from datetime import timedelta
from typing import Any

import pytest

from relay.config import Settings
from relay.ledger import Archive, State, key_of
from relay.operate.replay import Replay
from relay.outcome import Outcome
from tests.operate.conftest import SECRET, Relay, Rows, Svix, both_ledgers, letter

HOUR = timedelta(hours=1)


def listed(relay: Relay, *filters: str) -> list[str]:
    """The event ids in the output of `list --json`."""
    letters = relay.json("dead-letters", "list", *filters)["letters"]
    return sorted(each["event_id"] for each in letters)


# -- list and show


@both_ledgers
def test_list_and_its_filters(relay: Relay) -> None:
    relay.park(
        letter("evt_1"),
        letter("evt_2", "globex"),
        letter("evt_3", detail="Svix: 422 body.payload", svix_status=422),
    )
    assert listed(relay) == ["evt_1", "evt_2", "evt_3"]
    assert listed(relay, "--project", "globex") == ["evt_2"]
    assert listed(relay, "--type", "user.created", "--since", "1h") == ["evt_1", "evt_2", "evt_3"]
    assert listed(relay, "--type", "other") == []
    assert listed(relay, "--reason", "422") == ["evt_3"]
    assert listed(relay, "--since", "2999-01-01") == []
    result = relay("dead-letters", "list")
    assert result.stdout.startswith(
        "3 parked, 0 discarded\n      2  rejected: Svix: 413\n      1  rejected: Svix: 422"
    )
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert SECRET not in result.output


def test_thousands_are_counted_by_reason_and_shown_by_pages(relay: Relay, rows: Rows) -> None:
    rows.add_letters(2_001)
    result = relay("dead-letters", "list")
    assert "2,001 parked" in result.stdout
    assert "1,001  rejected: Svix: 413" in result.stdout
    assert "page 1 of 41" in result.stdout
    assert len(result.stdout.splitlines()) < 2 * 50 + 10
    seen = [
        each["id"]
        for page in (1, 2, 41)
        for each in relay.json("dead-letters", "list", "--page", str(page))["letters"]
    ]
    assert len(seen) == len(set(seen)) == 50 + 50 + 1
    assert relay.json("dead-letters", "list", "--page", "42")["letters"] == []


def test_the_newest_come_first(relay: Relay) -> None:
    for number in range(3):
        relay.park(letter(f"evt_{number}"))
    letters = relay.json("dead-letters", "list")["letters"]
    assert [each["event_id"] for each in letters] == ["evt_2", "evt_1", "evt_0"]


@both_ledgers
def test_show_prints_the_payload_only_if_asked(relay: Relay) -> None:
    relay.park(parked := letter("evt_1"))
    result = relay("dead-letters", "show", parked.id[:12])
    assert (result.exit_code, SECRET in result.output) == (0, False)
    assert "rejected: Svix: 413" in result.stdout
    shown = relay.json("dead-letters", "show", parked.id[:12], "--payload")
    assert json.loads(shown["payload"])["data"] == SECRET


@pytest.mark.parametrize("letter_id", ["abc", "../events/x", "", "ABC"])
def test_an_invalid_id_is_refused(relay: Relay, letter_id: str) -> None:
    result = relay("dead-letters", "show", letter_id)
    assert result.exit_code == 2
    assert "list" in result.stderr


def test_an_ambiguous_prefix_is_refused(relay: Relay) -> None:
    relay.park(*(letter(f"evt_{number}") for number in range(17)))
    first = sorted(each.id for each in relay.letters())
    prefix = next(a[0] for a, b in itertools.pairwise(first) if a[0] == b[0])
    result = relay("dead-letters", "show", prefix)
    assert result.exit_code == 2
    assert "give more of it" in result.stderr


# -- discard


@both_ledgers
def test_discard_keeps_the_letter_without_its_payload(relay: Relay) -> None:
    """A discarded letter can be listed and shown, but it no longer counts as unsent."""
    relay.park(given_up := letter("evt_1"), letter("evt_2"))
    discarded = relay("dead-letters", "discard", given_up.id[:12], "--reason", "a test event")
    assert discarded.exit_code == 0, discarded.output
    listing = relay.json("dead-letters", "list")
    assert (listing["parked"], listing["discarded"]) == (1, 1)
    assert listing["reasons"] == {"rejected: Svix: 413": 1}
    result = relay("dead-letters", "show", given_up.id[:12], "--payload")
    assert "a test event" in result.stdout
    assert "erased" in result.stdout
    assert SECRET not in result.output
    assert relay.json("inspect", "evt_1", "--project", "acme", status=1)["place"] == "discarded"


# -- replay


@both_ledgers
def test_replay_sends_parked_events_and_deletes_their_letters(relay: Relay, svix: Svix) -> None:
    relay.park(*(letter(f"evt_{number}") for number in range(5)))
    first = relay.letters()[0]
    result = relay("dead-letters", "replay", first.id[:12])
    assert (result.exit_code, len(svix.simulator.messages)) == (0, 1), result.output
    replayed = relay.json("dead-letters", "replay", "--all")["replayed"]
    assert [each["outcome"] for each in replayed.values()] == ["delivered"] * 4
    assert relay.letters() == []
    assert {each.event_id for each in svix.simulator.messages} == {f"evt_{n}" for n in range(5)}
    result = relay("dead-letters", "replay", "--all")
    assert (result.exit_code, result.stdout) == (0, "Nothing to replay.\n")


def test_replay_asks_svix_before_it_sends(relay: Relay, svix: Svix) -> None:
    """Svix has the message, but has forgotten its event id and its idempotency key."""
    relay.park(letter("evt_1"))
    svix.add_message("evt_1", age=timedelta(days=3))
    result = relay("dead-letters", "replay", "--all")
    assert result.exit_code == 0, result.output
    assert svix.paths == ["GET /api/v1/app/acme/msg/evt_1"]


def test_replay_of_an_event_delivered_meanwhile_sends_nothing(
    relay: Relay, svix: Svix, rows: Rows
) -> None:
    relay.park(letter("evt_1"))
    rows.add(State.DELIVERED, "evt_1")
    result = relay("dead-letters", "replay", "--all")
    assert result.exit_code == 0, result.output
    assert "duplicate" in result.stdout
    assert (svix.paths, relay.letters()) == ([], [])


def test_an_event_that_svix_refuses_again_stays_with_its_new_reason(
    relay: Relay, svix: Svix
) -> None:
    relay.park(letter("evt_1", svix_status=413))
    svix.inject("status", status=422, method="POST")
    result = relay("dead-letters", "replay", "--all")
    assert result.exit_code == 1, result.output
    assert [each.svix_status for each in relay.letters()] == [422]
    assert SECRET not in result.output


def test_a_malformed_event_stays(relay: Relay, svix: Svix) -> None:
    relay.park(letter(None, outcome="malformed", detail="no id"))
    result = relay("dead-letters", "replay", "--all")
    assert result.exit_code == 1, result.output
    assert [each.reason for each in relay.letters()] == ["malformed"]
    assert svix.paths == []


def test_a_replay_with_a_wrong_token_stops(relay: Relay, svix: Svix) -> None:
    relay.park(*(letter(f"evt_{number}") for number in range(40)))
    result = relay("dead-letters", "replay", "--all", SVIX_TOKEN="testsk_wrong")
    assert result.exit_code == 1, result.output
    assert "misconfigured" in result.stdout
    assert "not replayed" in result.stdout
    assert len(svix.paths) < 40
    assert "testsk_wrong" not in result.output
    assert [each.reason for each in relay.letters()] == ["rejected"] * 40


def test_a_discard_is_final_for_a_replay_under_way(relay: Relay, svix: Svix) -> None:
    """The replay must not restore the payload that was erased."""
    relay.park(parked := letter("evt_1"))
    svix.inject("status", status=422, method="POST")

    async def replay_while_it_is_discarded(archive: Archive) -> None:
        class Discarding:
            """Discards the letter after the replay has read it."""

            def __getattr__(self, name: str) -> Any:
                return getattr(archive, name)

            async def dead_letter(self, letter_id: str) -> Any:
                read = await archive.dead_letter(letter_id)
                await archive.discard_dead_letter(letter_id, "a test event")
                return read

        replay = Replay(Settings.from_environment(relay.settings), Discarding())
        results = [result async for _, result in replay.run([parked.id])]
        assert [result.outcome for result in results] == [Outcome.REJECTED]
        kept = await archive.dead_letter(parked.id)
        assert kept is not None
        assert (kept.data, kept.discarded) == (b"", "a test event")

    relay.within(replay_while_it_is_discarded)


def test_replay_needs_ids_or_all(relay: Relay) -> None:
    assert relay("dead-letters", "replay").exit_code == 2
    assert relay("dead-letters", "replay", "abc", "--all").exit_code == 2
    assert relay("dead-letters", "replay", "abc", "--project", "acme").exit_code == 2


def test_a_stopped_replay_leaves_no_claim(relay: Relay, svix: Svix) -> None:
    """Deliveries under way end normally. The other letters wait for the next replay."""
    relay.park(*(letter(f"evt_{number}") for number in range(60)))

    async def stopped(archive: Archive) -> None:
        replay = Replay(Settings.from_environment(relay.settings), archive)
        results = []
        async for _, result in replay.run([each.id for each in relay_letters]):
            results.append(result)
            if len(results) == 20:
                replay.stop()
        sent = {message.event_id for message in svix.simulator.messages}
        assert 20 <= len(sent) < 60
        for number in range(60):
            record = await archive.record(key_of("acme", f"evt_{number}"))
            delivered = record is not None and record.state is State.DELIVERED
            assert delivered is (f"evt_{number}" in sent)
            assert record is None or record.state is not State.CLAIMED

    relay_letters = relay.letters()
    relay.within(stopped)
    assert relay("dead-letters", "replay", "--all").exit_code == 0
    assert len(svix.simulator.messages) == 60
    assert relay.letters() == []
