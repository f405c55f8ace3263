"""Identities and rights: parse credentials, decide, issue tokens.

Pure: knows no HTTP framework and no storage, opens no file and waits for nothing.
`registry.access` reads the files and runs the logins.
"""
