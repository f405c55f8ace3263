"""Upkeep of a store: garbage collection, verification of every byte, repair.

Works beside a running server, through the store's own gate and publisher. When it runs is decided
elsewhere.
"""
