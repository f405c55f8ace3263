"""Fixtures of the tests of the command line."""

from tests.support.fixtures import root as root
