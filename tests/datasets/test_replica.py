"""A replica answers what any number of threads ask, each row as if it were alone, and fails all of it if it fails."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from rwkv_cli.datasets.job import Answerer, Job
from rwkv_cli.datasets.question import Question
from rwkv_cli.datasets.replica import Asked, Replica
from rwkv_cli.engine.scheduler import Scheduler
from rwkv_cli.errors import DeviceError, as_argument
from rwkv_cli.reporting import Reporter


@pytest.fixture
def answerer(tiny_model, compiled_kernels):  # noqa: ARG001
    job = Job(str(tiny_model), device="cpu", max_tokens=8, sampling={"banned": frozenset([0])}, batch_size=4)
    return Answerer(job, Reporter(), as_argument)


def asked(*numbers):
    return [Asked(Question(f"row {i}"), i, f"row {i}") for i in numbers]


def test_groups_of_many_threads_are_answered_as_alone(answerer):
    expected = {}
    for i in range(40):
        (answer,) = answerer.answers([answerer.prompt(Question(f"row {i}"), i, "")], in_order=True)
        expected[i] = answer.text
    heard = []
    replica = Replica(answerer, heard.append)
    groups = [range(0, 13), range(13, 14), range(14, 14), range(14, 33), range(33, 40)]
    with ThreadPoolExecutor(len(groups)) as pool:
        found = [*pool.map(lambda group: replica.submit(asked(*group)).result(30), groups)]
    assert [[answer.text for answer in answers] for answers in found] == [
        [expected[i] for i in group] for group in groups
    ]
    assert len(heard) == 40
    assert len(replica.submit(asked(1, 2)).result(30)) == 2  # after it had nothing to do
    replica.close()


def test_what_is_open_fails_when_it_is_closed(answerer):
    answerer.job = Job(
        str(answerer.model.path), max_tokens=-1, sampling={"banned": frozenset([0])}, batch_size=2
    )
    replica = Replica(answerer)
    futures = [replica.submit(asked(1)), replica.submit(asked(*range(2, 9)))]
    with pytest.raises(TimeoutError):
        futures[0].result(0.2)
    replica.close()
    for future in (*futures, replica.submit(asked(1))):
        with pytest.raises(DeviceError, match="the batch was ended"):
            future.result(1)


def test_a_device_that_fails_fails_all(answerer, monkeypatch):
    replica = Replica(answerer)
    assert replica.submit(asked(1)).result(30)

    def step(_):
        raise DeviceError("the GPU failed")

    monkeypatch.setattr(Scheduler, "step", step)
    for future in (replica.submit(asked(1, 2)), replica.submit(asked(3))):
        with pytest.raises(DeviceError, match="the GPU failed"):
            future.result(5)
    replica.close()


def test_a_row_that_is_wrong_costs_its_own_answer(answerer):
    replica = Replica(answerer)
    rows = [
        asked(1)[0],
        Asked(Question(error="no"), 0, "line 2"),
        Asked(Question("a", think="x"), 0, "line 3"),
    ]
    found = replica.submit(rows).result(30)
    assert [bool(answer.error) for answer in found] == [False, True, True]
    assert found[1].error == "line 2: no"
    replica.close()
