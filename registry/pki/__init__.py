"""Trust: the server's certificate, and the files that make a node believe it.

Pure libraries; the HTTP part and the command line call them, they call neither. Nothing here
imports `cryptography` unless a certificate has to be made.
"""
