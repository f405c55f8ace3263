"""The endpoints: one table of routes, the handlers, and the table of errors.

May use `access`, `coverage` and `http`. Handlers see stores by their Protocols only.
"""
