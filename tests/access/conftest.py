"""Fixtures for tests of access control."""

from tests.support.fixtures import quick_sync as quick_sync
