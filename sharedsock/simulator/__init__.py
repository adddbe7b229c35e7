"""FACE: scenarios. A story about shared sockets, played by real processes, each promise checked as it happens.

`scenario` says what a promise and a report are, `schedule` who leaves when, `stage` holds the players of one run,
`closing_sockets` is a story, `runner` plays one, `invariants` are the checks, `timeline` what happened, drawn.
"""
