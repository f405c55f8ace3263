"""Access: the guard, logins, the files of users and grants, the audit.

May use `auth`, `http` and rooms below. Knows no endpoint: routes and requests reach the guard as
values.
"""
