"""Bundles: image archives and directories, served where they lie and never written to.

`open` tells the kinds of bundles apart; one `archive.ArchiveReader` reads each kind; `bundle` makes
a store of it, `union` makes one store of several; `verified` proves content before its last byte is
sent. Everything in a bundle is a stranger's: it is checked before it is used. Nothing here may
change a store (`writer` writes new bundles only).
"""
