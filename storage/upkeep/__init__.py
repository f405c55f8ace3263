"""Upkeep of a store: garbage collection, checks of every byte, and repair."""
