"""Parked events, sent again by the function's own delivery, which asks Svix before it sends."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from relay.config import Settings
from relay.delivery import Delivery
from relay.envelope import Event, Malformed, read
from relay.ledger import Archive, DeadLetter
from relay.outcome import Outcome, Result
from relay.pacing import Pacer
from relay.worker import svix_sender

_AT_ONCE = 16
_DONE = {Outcome.DELIVERED, Outcome.DUPLICATE}
_JUDGED = {Outcome.REJECTED, Outcome.MALFORMED}


class Replay:
    """Sends dead letters again, once. To be built in the running loop.

    What was delivered is removed; what Svix will not take stays with its new reason; what can't be
    sent now stays as it is. Interrupted anywhere it can be run again: a letter is removed only
    after its event is recorded as delivered.
    """

    def __init__(self, settings: Settings, archive: Archive) -> None:
        self._archive = archive
        self._budget = settings.request_budget
        self._pacer = Pacer()
        self._sender = svix_sender(settings)
        self._delivery = Delivery(
            ledger=archive,
            sender=self._sender,
            pacer=self._pacer,
            clock=time.monotonic,
            create_applications=settings.create_applications,
            ask_first=True,
        )
        self._stopped = False

    async def run(self, letter_ids: Sequence[str]) -> AsyncIterator[tuple[str, Result]]:
        """Each letter's result, as they come. Raises `LedgerUnavailable`.

        Ends early, with those in flight, when it is stopped or where the relay is misconfigured.
        """
        waiting = list(reversed(letter_ids))
        running: set[asyncio.Task[tuple[str, Result] | None]] = set()
        try:
            while running or (waiting and not self._stopped):
                while waiting and not self._stopped and len(running) < _AT_ONCE:
                    running.add(asyncio.create_task(self._send_again(waiting.pop())))
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if (replayed := task.result()) is not None:
                        if replayed[1].outcome is Outcome.MISCONFIGURED:
                            self.stop()
                        yield replayed
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await self._sender.close()

    def stop(self) -> None:
        """Begin no more, and let those who wait for their turn give their claims back."""
        self._stopped = True
        self._pacer.close()

    async def _send_again(self, letter_id: str) -> tuple[str, Result] | None:
        letter = await self._archive.dead_letter(letter_id)
        if letter is None or letter.discarded:
            return None  # somebody else was faster
        result = await self._deliver(letter)
        if result.outcome in _DONE:
            await self._archive.remove(letter_id)
        elif result.outcome in _JUDGED:
            told = replace(
                letter,
                reason=result.outcome,
                detail=result.detail or "",
                svix_status=result.svix_status,
                svix_code=result.svix_code,
            )
            await self._archive.restate(letter_id, told)
        return letter_id, result

    async def _deliver(self, letter: DeadLetter) -> Result:
        try:
            event = _event_in(letter)
        except Malformed as fault:
            return Result(outcome=Outcome.MALFORMED, detail=fault.detail)
        deadline = time.monotonic() + self._budget
        return await self._delivery.deliver(event, deadline)


def _event_in(letter: DeadLetter) -> Event:
    event = read(letter.data, {})
    # Not pushed: what is rejected again is not to be parked anew under another id.
    source = replace(
        event.source,
        pushed=False,
        message_id=letter.message_id,
        subscription=letter.subscription,
    )
    return replace(event, source=source)
