"""Which node has which image: what requests show, kept across crashes, and what follows from it.

Imports no endpoint and nothing that ends the server.
"""
