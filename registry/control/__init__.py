"""Status and report: the local socket for other processes, ready.json, and texts for people.

`socket` serves status, wait and stop; `client` is its other end, in another process;
`status_service` answers. `report` has the data of status and report, `status_text` their text.
`readiness` writes ready.json and logs the start, `completion_log` logs the nodes that become
complete.

This room reads coverage and the lifecycle and must not be imported by them; it ends the server
only by the latch it is given.
"""
