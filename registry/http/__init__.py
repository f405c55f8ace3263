"""The wire: sockets, connections, TLS, request bodies, and files on their way out.

Knows no OCI, no store, no user and no lifetime: nothing here imports another room of the registry.
"""
