"""Sends dead letters again, with the function's own `Delivery`, which asks Svix before it sends."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

from relay.config import Settings
from relay.delivery import Delivery
from relay.envelope import Refused, read_again
from relay.ledger import Archive, DeadLetter, LetterDamaged
from relay.outcome import PARKED_OUTCOMES, Outcome, Result
from relay.pacing import Pacer
from relay.worker import svix_sender

_CONCURRENT = 16  # letters under way
SENT = {Outcome.DELIVERED, Outcome.DUPLICATE}


class Replay:
    """Sends dead letters again, once each. Must be created in the running loop.

    If the event is delivered, the letter is deleted. If the event is rejected again, the letter
    stays, with the new reason. If the event can't be sent now, the letter stays unchanged.

    An interrupted replay can be run again, because a letter is deleted only after its event is
    recorded as delivered.
    """

    def __init__(self, settings: Settings, archive: Archive) -> None:
        self._archive = archive
        self._settings = settings
        self._sender = svix_sender(settings)
        self._delivery = Delivery(
            ledger=archive, sender=self._sender, pacer=Pacer(), ask_first=True
        )
        self._running: set[asyncio.Task[tuple[str, Result] | None]] = set()

    async def run(self, letter_ids: Iterable[str]) -> AsyncIterator[tuple[str, Result]]:
        """The id and the result of each letter, in the order in which they end.

        After `stop`, or if the relay is misconfigured, no further letter is begun. The iterator
        ends when the letters under way have ended. Raises `LedgerUnavailable`.
        """
        waiting = iter(letter_ids)
        try:
            while True:
                while not self._delivery.closing and len(self._running) < _CONCURRENT:
                    if (letter_id := next(waiting, None)) is None:
                        break
                    self._running.add(asyncio.create_task(self._send_again(letter_id)))
                if not self._running:
                    return
                done, self._running = await asyncio.wait(
                    self._running, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    if task.cancelled() or (replayed := task.result()) is None:
                        continue
                    if replayed[1].outcome is Outcome.MISCONFIGURED:
                        self.stop()
                    yield replayed
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            await self._sender.close()

    def stop(self) -> None:
        """Begin no more attempts.

        Attempts under way go on. The tasks of all other letters are cancelled: these letters stay
        stored, unless their deletion was already under way.
        """
        self._delivery.closing = True
        for task in self._running - self._delivery.attempting:
            task.cancel()

    async def _send_again(self, letter_id: str) -> tuple[str, Result] | None:
        try:
            letter = await self._archive.dead_letter(letter_id)
        except LetterDamaged as fault:
            return letter_id, Result(outcome=Outcome.MALFORMED, detail=f"{fault}; left as it is")
        if letter is None or letter.discarded is not None:
            return None  # replayed or discarded meanwhile
        result = await self._deliver(letter)
        if result.outcome in SENT:
            await self._archive.delete_dead_letter(letter_id)
        elif result.outcome in PARKED_OUTCOMES:
            await self._archive.update_dead_letter(
                replace(
                    letter,
                    reason=result.outcome,
                    detail=result.detail or "",
                    svix_status=result.svix_status,
                    svix_code=result.svix_code,
                )
            )
        return letter_id, result

    async def _deliver(self, letter: DeadLetter) -> Result:
        try:
            attributes = json.loads(letter.attributes)
            event = read_again(letter.data, letter.form, attributes, self._settings.event_tags)
        except Refused as refused:
            return Result(outcome=refused.outcome, detail=refused.detail, code=refused.code)
        # So that the record has the id of the message that was parked.
        source = replace(
            event.source, message_id=letter.message_id, subscription=letter.subscription
        )
        event = replace(event, source=source)
        arrived_at = time.monotonic()
        deadline = arrived_at + self._settings.request_budget
        return await self._delivery.deliver(event, arrived_at, deadline, asyncio.current_task())
