"""Fixtures of the tests of the wire."""

from tests.support.fixtures import quick_sync as quick_sync
from tests.support.fixtures import root as root
from tests.support.registry import clean_log as clean_log
from tests.support.registry import client as client
from tests.support.registry import client_with as client_with
from tests.support.registry import files as files
from tests.support.registry import handshake_seconds as handshake_seconds
from tests.support.registry import may_log_errors as may_log_errors
from tests.support.registry import server as server
from tests.support.registry import store as store
from tests.support.registry import wire as wire
