"""The process and its neighbours: the command of `mayfly run`, signals, systemd, open files."""
