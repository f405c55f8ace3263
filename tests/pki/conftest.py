"""Fixtures of the tests of certificates."""

from tests.support.fixtures import quick_sync as quick_sync
from tests.support.identities import constrained as constrained
from tests.support.identities import identity as identity
