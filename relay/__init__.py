"""The webhook relay: each event that Pub/Sub pushes is in Svix once, in effect, before it is acked.

The way of one event, through one room each:

    main.py        an HTTP request comes in
    worker.py      one worker process: its clients, its requests, its end
    intake.py      which body may be read when
    envelope.py    body and headers -> Event; anything that is not a valid event is refused
    delivery.py    the protocol, and the table of what comes next after each answer of Svix
      pacing/        a turn to call Svix; requests wait for theirs rather than being refused
      ledger/        claim: one worker at a time; settle: delivered, or released for the next
      sender.py      one call to Svix, its answer classified
    parking.py     what can never succeed is stored as a dead letter
    results.py     how the delivery ended, in words; outcome.py has the tables of statuses
    logs.py        one JSON line

`config.py` reads the settings. `operate/` holds the operator's commands. Imports run downwards.
"""
