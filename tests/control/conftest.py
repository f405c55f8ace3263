"""Fixtures of the tests of the control socket."""

from tests.support.stubs import own_signals as own_signals
from tests.support.stubs import start as start
