"""Transfers between stores and bundles: importing, exporting.

Reads any store by its interface and writes through the ordinary way in, an upload and a push. How
an archive is read belongs to `storage.bundle`.
"""
