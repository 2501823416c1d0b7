"""The simulation of a cluster agrees with what can be known without it."""

from dataclasses import replace

import pytest
from simulate_cluster import Cluster, simulate

CALM = Cluster(replicas=10, rows=1e6, shard_rows=1000, slow_share=0, load=0, load_bytes=0, driver=0)


def test_replicas_without_faults_are_busy_until_the_end():
    found = simulate(CALM)
    assert found.efficiency == pytest.approx(1, abs=0.06)
    assert found.lost == 0
    assert simulate(replace(CALM, replicas=1)).seconds == pytest.approx(10 * found.ideal, rel=0.03)


def test_what_costs_time():
    base = simulate(CALM)
    late = simulate(replace(CALM, load=100))
    assert late.seconds == pytest.approx(base.seconds + 100, rel=0.05)
    assert simulate(replace(CALM, slow_share=1)).seconds == pytest.approx(3 * base.seconds, rel=0.05)
    driver = simulate(replace(CALM, driver=10.0))
    assert driver.driver_busy == pytest.approx(1, abs=0.05)
    assert driver.seconds > 1000 * 10
    faults = simulate(replace(CALM, lost_per_hour=20))
    assert faults.lost > 0
    assert faults.seconds > base.seconds
    assert simulate(replace(CALM, replicas=100, shard_rows=100_000)).efficiency < 0.2
