"""The loop of a node goes on while a job of its own takes long, in one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from raftplug.threads import LoopThread, Worker

PATIENCE_S = 30.0


class Loop:
    """A loop that makes turns until it is stopped; what is queued is run as its own job."""

    def __init__(self, end: Callable[[BaseException | None], None] = lambda error: None) -> None:
        self.turns = 0
        self.inside = 0
        self.together = 0
        self.calls: list[tuple[Any, Any]] = []
        self.jobs: list[tuple[Any, Any]] = []
        self.stopping = False
        self.each_turn: Callable[[], None] = lambda: None
        self.turned = threading.Condition()
        self.thread = LoopThread(
            "test",
            run=self.run,
            end=end,
            hand_back=lambda done, error: self.calls.append((done, error)),
            patience_s=0.01,
        )

    def run(self) -> None:
        while not self.stopping:
            self.each_turn()
            with self.turned:
                self.turns += 1
                self.inside += 1
                self.together = max(self.together, self.inside)
                self.turned.notify_all()
            while self.calls:
                done, error = self.calls.pop(0)
                done(error)
            job = self.jobs.pop(0) if self.jobs else None
            with self.turned:
                self.inside -= 1
                self.turned.wait(0.001)
            if job is not None:
                self.thread.execute(*job)

    def more_turns(self, count: int) -> None:
        with self.turned:
            until = self.turns + count
            assert self.turned.wait_for(lambda: self.turns >= until, PATIENCE_S)


def test_a_job_that_is_quick_is_done_within_the_turn() -> None:
    loop, seen = Loop(), []
    loop.jobs.append((lambda: seen.append(threading.current_thread()), lambda error: seen.append(error)))
    loop.thread.start()
    loop.more_turns(3)
    assert seen[1:] == [None] and seen[0] is loop.thread._thread
    loop.stopping = True
    assert loop.thread.join(PATIENCE_S)


def test_the_loop_goes_on_while_a_job_takes_long_and_its_result_comes_back_in_the_loop() -> None:
    loop, release, began = Loop(), threading.Event(), threading.Event()
    ended: list[Any] = []

    def job() -> None:
        began.set()
        assert release.wait(PATIENCE_S)
        raise ValueError("its result")

    loop.jobs.append((job, lambda error: ended.append((error, loop.thread.is_current()))))
    loop.thread.start()
    assert began.wait(PATIENCE_S)
    loop.more_turns(20)
    assert ended == []
    release.set()
    assert loop.thread.join_kept(PATIENCE_S)
    loop.more_turns(3)
    ((error, is_current),) = ended
    assert isinstance(error, ValueError) and is_current
    assert loop.together == 1, "never two threads in the loop"
    loop.stopping = True
    assert loop.thread.join(PATIENCE_S)


def test_the_loop_ends_once_whichever_thread_has_it() -> None:
    ends: list[Any] = []
    loop, release = Loop(ends.append), threading.Event()
    loop.jobs += [(lambda: assert_(release.wait(PATIENCE_S)), lambda error: None)] * 3
    loop.thread.start()
    loop.more_turns(20)
    loop.stopping = True
    assert loop.thread.join(PATIENCE_S)
    assert not loop.thread.join_kept(0.0), "its jobs are still at work"
    release.set()
    assert loop.thread.join_kept(PATIENCE_S)
    assert ends == [None]


def test_an_error_of_the_loop_is_what_it_ends_with() -> None:
    ends: list[Any] = []
    loop = Loop(ends.append)

    def done(error: BaseException | None) -> None:
        raise RuntimeError("a turn failed")

    loop.jobs.append((lambda: None, done))
    loop.thread.start()
    assert loop.thread.join(PATIENCE_S)
    assert [str(error) for error in ends] == ["a turn failed"]


def test_a_worker_runs_its_jobs_in_order_and_stops_in_bounded_time() -> None:
    worker, seen, release = Worker("test"), [], threading.Event()
    for number in range(10):
        worker.submit(lambda number=number: seen.append(number), lambda error: None)  # type: ignore[misc]
    assert worker.stop(PATIENCE_S) and seen == list(range(10))
    stuck = Worker("stuck")
    stuck.submit(lambda: assert_(release.wait(PATIENCE_S)), lambda error: None)
    assert not stuck.stop(0.01)
    release.set()
    assert stuck.stop(PATIENCE_S)


def test_a_job_that_fails_tells_its_own_error_and_the_next_one_is_run() -> None:
    worker, ends = Worker("test"), []

    def fail() -> None:
        raise OSError("the disk")

    worker.submit(fail, ends.append)
    worker.submit(lambda: None, ends.append)
    assert worker.stop(PATIENCE_S)
    assert [str(error) for error in ends] == ["the disk", "None"]


def assert_(condition: bool) -> None:
    assert condition
