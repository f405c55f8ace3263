"""The state directory: its lock, the files of a run, which outlive a crash, and private files.

This room knows files only. It must not import HTTP, coverage, the store or the process's command.
"""
