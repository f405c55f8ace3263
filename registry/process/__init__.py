"""The process and its environment: `mayfly run`'s command, signals, systemd, open files.

Reasons to end are passed on as `ending.Latch`. This room must not import conditions, the drain,
coverage or the HTTP server: `serving` connects it with them.
"""
