"""The webhook relay takes events from Pub/Sub, puts each into Svix once, and then acks it.

One event passes through these modules, in this order:

    main.py        an HTTP request comes in
    worker.py      runs one worker process: its clients, its requests and its shutdown
    intake.py      decides when each request's body is read
    envelope.py    reads the body and the headers into an Event, or refuses them
    delivery.py    runs the protocol; a table says what follows each answer of Svix
      pacing/        gives turns to call Svix, so that requests wait instead of exceeding its limit
      ledger/        records claims, so that one worker at a time sends an event
      sender.py      makes one call to Svix and classifies the answer
    parking.py     stores, as a dead letter, a push that can never succeed
    results.py     builds the result; outcome.py lists the outcomes and their HTTP statuses
    logs.py        writes one JSON line

`config.py` reads the settings. `operate/` holds the operator's commands. No imports are circular.
"""
