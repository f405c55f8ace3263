"""Who may do it: which actions a request needs, who sends it, and the audit of refusals.

The decisions are those of `mayfly.auth`; this room brings requests and files to them.
"""
