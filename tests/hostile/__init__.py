"""Attacks on a running server, each beside a probe of `/livez` every 50 ms.

Add one: a test function, one `with` line, and the attack as its body.

    from tests.hostile.harness import Hostile

    def test_blanks_in_a_header(hostile: Hostile) -> None:
        \"\"\"A header of blanks costs no more than any other.\"\"\"
        with hostile.attack("64,000 blanks in `Content-Length`", before="stalled 29 s") as under:
            while under.going():
                send(under.server, b"...")

- ``hostile.attack(name, before=...)`` starts a server, starts the prober (a process of its own) and
  measures until the block ends. ``name`` is the row of the table in docs/reliability.md, ``before``
  the figure of the attack before it was bounded, in words.
- ``under.going()`` is true until ``probes`` probes (20) were answered under attack, so an attack
  that is over at once repeats itself. It fails the test when that takes longer than ``patience``
  (60 s, a guard): then the server was held up. An attack that takes long by itself needs no loop.
- At the end of the block: at least ``probes`` probes were answered before the attack ended, none
  failed, peak memory (VmHWM) is at most ``growth`` MiB (128) above calm. Milliseconds are recorded,
  not asserted.
- ``hostile.attack_by_lines(name, count, before=...)`` is an attack with that many connections.
- ``hostile.serve(*options)`` before the block starts the server with options and returns it, for
  what has to be in the store first. ``hostile.serve(..., root=PATH)`` serves an existing store.
- ``may_end=True`` where the server ends during the attack (signals, deadlines).
- ``under.note("...")`` adds a figure of the attack's own to the table.
- ``hostile.command(name, *argv, before=..., growth=...)`` runs `mayfly ARGV` instead, where the
  attack is what a command reads: its exit code and output, with peak memory below ``growth`` MiB.
- ``hostile.long`` is true in `make soak`: use larger sizes there. Results then go into
  `.cache/hostile.json` (or ``MAYFLY_HOSTILE_RESULTS``), and ``python -m tests.hostile`` renders
  them into docs/reliability.md between its markers.
"""
