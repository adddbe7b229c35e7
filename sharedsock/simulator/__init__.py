"""FACE: scenarios. A story about shared sockets, played by real processes, each promise checked as it happens.

`scenario` says what a promise and a report are, `transports` which transport can keep which part of them, `schedule`
who leaves when. `stage` holds the players of one run, `player` is what they do; `closing_sockets` is a story, made of
`checks` and `endings`; `invariants` are the rules it is held to, `runner` plays it, `timeline` draws what happened.
"""
