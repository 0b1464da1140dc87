"""What a future promises, and that it promises it to threads and to asyncio alike."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from typing import Any

import pytest

from raftplug.core import Future
from raftplug.errors import InvariantViolated, OutcomeUnknown


@pytest.fixture(autouse=True)
def of_each_core(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "Future", core.Future)


def waiting(future: Any) -> list[Any]:
    """Each list that it holds: that of those who wait, if there ever was one."""
    return [each for each in gc.get_referents(future) if type(each) is list]


def test_a_result_is_returned_as_often_as_it_is_asked_for() -> None:
    future = Future()
    assert not future.done() and future.running() and not future.cancel() and not future.cancelled()
    future.set_result([1])
    assert future.done() and not future.running()
    assert future.result() == [1] and future.result(0) == [1] and future.exception() is None


def test_none_is_a_result() -> None:
    future = Future()
    future.set_result(None)
    assert future.done() and future.result(0) is None


def test_an_error_is_raised_as_often_as_it_is_asked_for() -> None:
    future = Future()
    error = OutcomeUnknown("lost")
    future.set_exception(error)
    for _ in range(2):
        with pytest.raises(OutcomeUnknown, match="lost"):
            future.result()
    assert future.exception(0) is error


def test_waiting_in_vain_raises_the_builtin_timeout_and_leaves_nothing_behind() -> None:
    future = Future()
    for timeout in (0, 0.001, -1):
        with pytest.raises(TimeoutError):
            future.result(timeout)
        with pytest.raises(TimeoutError):
            future.exception(timeout)
    assert waiting(future) in ([], [[]])
    future.set_result(7)
    assert future.result() == 7


def test_nothing_is_made_for_a_future_that_nobody_waits_for() -> None:
    future = Future()
    future.set_result(1)
    assert not waiting(future) and not hasattr(future, "__dict__")


def test_a_second_outcome_is_refused_and_changes_nothing() -> None:
    future = Future()
    future.set_result(1)
    with pytest.raises(InvariantViolated):
        future.set_result(2)
    with pytest.raises(InvariantViolated):
        future.set_exception(OSError())
    assert future.result() == 1


def test_callbacks_run_in_order_once_each_also_when_added_late() -> None:
    future, seen = Future(), []
    for number in range(5):
        future.add_done_callback(lambda f, number=number: seen.append((number, f.result())))
    assert seen == []
    future.set_result("x")
    future.add_done_callback(lambda f: seen.append(("late", f.result())))
    assert seen == [*((number, "x") for number in range(5)), ("late", "x")]


def test_a_raising_callback_is_logged_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    future, seen = Future(), []
    future.add_done_callback(lambda f: 1 // 0)
    future.add_done_callback(seen.append)
    future.set_result(1)
    future.add_done_callback(lambda f: 1 // 0)
    assert seen == [future]
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError] * 2


def test_a_callback_may_add_a_callback_and_ask_for_the_result() -> None:
    future, seen = Future(), []
    future.add_done_callback(lambda f: f.add_done_callback(lambda g: seen.append(g.result(0))))
    future.set_result(3)
    assert seen == [3]


def test_many_threads_wait_for_one_future() -> None:
    future, seen = Future(), []
    threads = [threading.Thread(target=lambda: seen.append(future.result())) for _ in range(20)]
    for thread in threads:
        thread.start()
    future.set_result(9)
    for thread in threads:
        thread.join()
    assert seen == [9] * 20


def test_whoever_comes_first_waiter_or_setter_each_callback_runs_exactly_once() -> None:
    rounds = 3_000
    futures = [Future() for _ in range(rounds)]
    runs = [[0] * 3 for _ in range(rounds)]
    waited: list[list[int]] = [[], []]
    start = threading.Barrier(4)

    def register(which: int) -> None:
        start.wait()
        for number, future in enumerate(futures):

            def count(_: Future, number: int = number) -> None:
                runs[number][which] += 1

            future.add_done_callback(count)

    def wait(which: int) -> None:
        start.wait()
        for future in futures:
            waited[which].append(future.result(60))

    def resolve() -> None:
        start.wait()
        for number, future in enumerate(futures):
            future.set_result(number)

    threads = [
        threading.Thread(target=register, args=(0,)),
        threading.Thread(target=register, args=(1,)),
        threading.Thread(target=wait, args=(0,)),
        threading.Thread(target=resolve),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs == [[1, 1, 0]] * rounds
    assert waited[0] == list(range(rounds))
    assert not any(each for future in futures for each in waiting(future))


def test_many_tasks_await_one_future_that_another_thread_sets() -> None:
    async def main() -> list[int]:
        future = Future()

        async def wait() -> int:
            return await future

        tasks = [asyncio.create_task(wait()) for _ in range(10)]
        await asyncio.sleep(0)
        thread = threading.Thread(target=future.set_result, args=(5,))
        thread.start()
        try:
            return [*await asyncio.gather(*tasks), await future]
        finally:
            thread.join()

    assert asyncio.run(main()) == [5] * 11


def test_an_awaited_error_is_raised_in_the_task() -> None:
    async def main() -> None:
        future = Future()
        asyncio.get_running_loop().call_soon(future.set_exception, OutcomeUnknown("gone"))
        with pytest.raises(OutcomeUnknown):
            await future

    asyncio.run(main())


def test_a_cancelled_or_timed_out_task_leaves_the_future_and_its_list_alone() -> None:
    async def main() -> int:
        future = Future()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(future, 0.001)
        assert waiting(future) in ([], [[]])
        future.set_result(1)
        return await asyncio.wait_for(future, 10)

    assert asyncio.run(main()) == 1


def test_a_loop_that_was_closed_does_not_trouble_the_setter(caplog: pytest.LogCaptureFixture) -> None:
    future = Future()
    loop = asyncio.new_event_loop()

    async def wait() -> None:
        await future

    task = loop.create_task(wait())
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    future.set_result(1)
    assert not caplog.records
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # It is abandoned on purpose.


def test_an_error_makes_no_reference_cycle() -> None:
    gc.disable()
    try:
        future = Future()
        future.set_exception(OutcomeUnknown("x"))
        try:
            future.result()
        except OutcomeUnknown:
            pass
        watch = weakref.ref(future)
        del future
        assert watch() is None
    finally:
        gc.enable()
