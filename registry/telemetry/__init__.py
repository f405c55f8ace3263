"""Telemetry: events of requests and of the run, the audit file, webhooks.

Knows no endpoint, no store and no user: other rooms report events, this one keeps and sends them,
and never delays the callers.
"""
