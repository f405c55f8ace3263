"""Fixtures of the tests of coverage."""

from tests.support.fixtures import root as root
from tests.support.registry import store as store
