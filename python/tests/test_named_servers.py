"""The suite on servers that are up already: TEST_APP_DSN and TEST_WAREHOUSE_DSN name them."""

from __future__ import annotations

from unittest import SkipTest

import pytest
from conftest import ANN, empty_world

from lab import servers


@pytest.fixture
def named_lab(world, monkeypatch):
    """The session's two servers, each as the other one, whose database and role it does not have yet."""
    for side, server in (("APP", world.lab.warehouse), ("WAREHOUSE", world.lab.app)):
        monkeypatch.setenv("TEST_%s_DSN" % side, "postgresql://%s:%s@127.0.0.1:%d/postgres" % (
            server.superuser, server.password, server.port))
    with servers.servers_to_test_on() as lab:
        yield lab
    assert not world.app.sql("SELECT 1 FROM pg_database WHERE datname = 'warehouse'")
    assert not world.warehouse.sql("SELECT 1 FROM pg_roles WHERE rolname = 'app_readonly'")


def test_a_named_server_takes_a_run_but_is_not_stopped(named_lab, script):
    named_lab.set_up()
    with empty_world(named_lab, script) as world:
        world.app_has((ANN, "Ann"))
        assert world.sync().counts() == "1: 1 new"
    with pytest.raises(SkipTest, match="TEST_APP_DSN"):
        named_lab.app.stop()


def test_a_database_that_is_there_already_is_left_alone(named_lab):
    with pytest.raises(RuntimeError, match='TEST_APP_DSN: .*"app" already exists'):
        named_lab.app.create()
