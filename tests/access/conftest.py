"""Fixtures of the tests of who may do what."""

from tests.support.fixtures import quick_sync as quick_sync
from tests.support.registry import clean_log as clean_log
