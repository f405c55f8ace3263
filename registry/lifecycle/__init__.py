"""The end of a server: its conditions, its plan, and the drain, which serves pulls to their end.

The registry lives for one upgrade. Requests are all it sees, and from them it must conclude when
the upgrade is complete. Two ideas belong to this room:

*Conditions are levels, not edges.* Each thing that may end the server (`conditions`, `watches`) can
be waited for, and can be asked whether it holds now. So "idle" can be revoked until the listening
sockets close, and "all of these" means at the same time. `plan` makes one condition of the
settings, and the exit code of the outcome.

*A drain decides by node.* A pull is many requests, so `drain` still admits those that continue a
pull or push that had begun, and refuses all others.

    settings ──► plan ──► conditions ◄── watches, ending.Latch (signals, control socket, command)
                              ▲
    requests ──► activity, coverage
                     └──► drain (admit or refuse; wait until it is quiet)

Which node has which image is `coverage`'s to say. The order of the end (stop, drain, close, report)
is in `serving`, which composes this room with others.

This room must not import the control socket, the report, the store or anything of HTTP. Time comes
from a `clock.Clock`, so that tests let it pass. Only the event loop's thread may use these objects.
"""
