"""The webhook relay: each event that Pub/Sub pushes is in Svix once, in effect, before it is acked.

The way of one event, through one room each:

    main.py        an HTTP request comes in
    worker.py     the worker's clients, built once; hands the request on, logs what became of it
    envelope.py    body and headers -> Event; what is no event is Malformed
    delivery.py    claim, send, settle; what can never succeed is parked
      ledger/        claim: one worker at a time, and none once it is delivered; settle: say so
      pacing.py      the turn to call Svix: waits out a rate limit rather than refusing the push
      sender.py      one call to Svix, its answer classified
    outcome.py     what became of it -> HTTP status (2xx: ack; 409, 429, 500: Pub/Sub retries)
    logs.py        one JSON line

`config.py` reads the settings, and derives every time limit from one of them. Imports run
downwards only.
"""
