"""Bundles: image archives and directories, served where they lie and never written to."""
