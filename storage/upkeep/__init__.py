"""Upkeep of a store: use of its space, garbage collection, verification, repair.

Works beside a running server, through the store's own gate and publisher. When it runs is decided
elsewhere.
"""
