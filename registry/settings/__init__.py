"""Settings: one table for flags, environment variables and the keys of ``mayfly.toml``.

Imports no other room.
"""
