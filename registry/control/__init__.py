"""Status and report: the local socket for other processes, ready.json, and texts for people.

`socket` serves status, wait and stop; `client` is its other end, in another process;
`status_service` answers; `report` has the data, `table` its text, `milestones` the log of nodes
that become complete, `readiness` ready.json.

This room reads coverage and the lifecycle and must not be imported by them; it ends the server
only by the latch it is given.
"""
