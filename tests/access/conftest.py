"""Fixtures of the tests of who may do what."""

from tests.support.fixtures import quick_sync as quick_sync
