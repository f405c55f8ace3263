"""The lifetime of a registry that is there for one upgrade: when it ends, and how.

Theory first. The registry sees requests, and from requests alone it must know when an upgrade is
over. Four ideas carry that:

*A node's pull is many requests.* `pulls` follows each node through HEAD, manifest, children and
blobs, and knows what it is still expected to ask for. So a pull is under way also while nothing is
in flight, and that decides both when coverage may be believed and what a drain still serves.

*Facts, then conclusions.* `ledger` keeps what happened, and only that: this node was served this
manifest, this blob did not arrive there. It outlives a kill of the server. `coverage` concludes
from it, and from what the tags point at now, which node has which image.

*Conditions are levels.* Each thing that may end the server (`conditions`, `watches`, `signals`) can
be waited for and can be asked whether it holds now. That makes "idle" revocable until the very
moment the door is shut, and "all of these" mean at the same time.

*The end is a sequence.* `life` is the only place that knows it: a reason, the command told, nothing
new let in, what is under way finished or cut (`drain`), connections closed, the report written
(`report`, `table`), those who asked over the control socket told, private files gone.

The request path sees two objects, `observer.Observer` (told what happens) and `drain.Drain` (asked
whether a request may begin), and counts its bytes on `activity.Activity`. Everything else hangs
from `life.Life`:

    plan ──────► conditions ◄── watches, signals, control (desk)
                     ▲
    requests ► observer ► activity, pulls, ledger ► coverage
                 │                     └──► report, table (desk)
                 └► drain
    life: state ► listen ► child, private ► conditions ► drain ► report
    outside: systemd (sockets in, notifications out), client (the other end of control)

Time comes from a `clock.Clock`, so tests let it pass at will. Only the event loop's thread may use
these objects; the exceptions are `client`, which is another process's, and `report.storage_used`.
"""
