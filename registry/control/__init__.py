"""The local socket: status, wait and stop for other processes, and the report with its text."""
