"""Fixtures of the tests of the whole registry."""

from tests.support.registry import clean_log as clean_log
from tests.support.registry import may_log_errors as may_log_errors
