"""Telemetry: events of requests and of the run, the audit file, webhooks.

Knows no endpoint, no store and no user: other rooms say what happened, this one keeps and sends it,
and never delays them.
"""
