"""The page of `make run`: watch the relay work, break it, and see what became of each event.

    steps.py    what an instance logs: the steps of an event, the pacer's state
    verdict.py  what became of an event, from what was published and what Svix and endpoints hold
    journal.py  what has happened in one stack: counts, a chart, the life of each event
    lane.py     one function on the page, and the actions of the buttons
    stories.py  the four stories
    app.py      the server: one page, server-sent events, and the buttons' requests

There are two lanes, with the same stack around each: the relay, and the function most people would
write.
"""
