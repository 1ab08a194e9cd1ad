"""Load on a server, and what it answers: the machinery of ``embedmux bench``.

A ``Plan`` (plan.py) says what is sent and when. Worker processes (processes.py) each send a part of it (generate.py,
sender.py), at arrival times drawn ahead (arrivals.py), with texts and tasks drawn from a seed (texts.py, mix.py). What
came back stands in columns (answers.py), of which summary.py makes the figures and plot.py the picture.

Latency counts from the moment a request was due, not from the moment it was sent: a request that had to wait behind a
stalled server, or a stalled generator, waited all the same. Tools that measure from the send omit just these waits
("coordinated omission").
"""
