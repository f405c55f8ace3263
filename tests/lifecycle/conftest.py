"""Fixtures of the tests of when a server ends."""

from tests.support.stubs import own_signals as own_signals
