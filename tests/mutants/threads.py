"""Forks, callbacks, threads that cannot be started, and which state machine has a thread of its own."""

from mutants.mutant import Mutant

FORKS = "forks.py"
THREADS = "threads.py"
FUTURE = "future.py"
PACE = "pace.py"
_FORKS = "tests/test_forks.py::"
_CALLBACKS = "tests/test_callbacks.py::"
_LIMIT = "tests/test_thread_limit.py::"
_APPLY = "tests/test_apply.py::"
_OUTLIVES = (_FORKS + "test_a_child_that_outlives_its_parent_holds_nothing_and_spoils_nothing",)
_REFUSED = (_FORKS + "test_everything_that_a_parent_started_refuses_a_child_at_once_and_goes_on",)
_OWN_THREAD = (_FORKS + "test_a_child_that_was_forked_in_a_nodes_own_thread_does_not_go_on_as_the_node",)
_MAY_WAIT = (_CALLBACKS + "test_a_callback_and_an_observer_may_wait_for_anything",)
_MUST_NOT_WAIT = (_CALLBACKS + "test_a_state_machine_that_waits_is_refused_at_once_and_its_node_goes_on",)

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "a child ends its parent's SQLite connections",
        FORKS,
        "keep_for_ever",
        "ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))",
        "ctypes.py_object(thing)",
        tests=(_FORKS + "test_a_child_that_ends_removes_nothing_of_its_parents",),
    ),
    Mutant(
        "a child keeps the lock on its parent's directory",
        "directory.py",
        "Directory.__init__",
        "        follow(self)\n",
        "",
        tests=_OUTLIVES,
    ),
    Mutant(
        "a child keeps its parent's embedded server running",
        "embedded.py",
        "EmbeddedServer.forked",
        "shell.stdin.close()",
        "pass",
        tests=_OUTLIVES,
    ),
    Mutant(
        "a child keeps its parent's connections open",
        "redis_streams.py",
        "RedisStreams.forked",
        "wire.forked()",
        "pass",
        tests=(_FORKS + "test_a_child_keeps_neither_the_directory_nor_a_connection",),
    ),
    Mutant(
        "a fork does not wait for who is inside SQLite",
        FORKS,
        "_before",
        'hasattr(follower, "held_over_fork")',
        "False",
        tests=(_FORKS + "test_a_fork_waits_until_no_thread_is_inside_the_storage_but_not_for_ever",),
    ),
    Mutant(
        "a future of the parent's is waited for in a child",
        FUTURE,
        "Future._require_setter",
        "self._forks != _forks",
        "False",
        tests=_REFUSED,
    ),
    Mutant(
        "a node in a child says that it leads",
        "node.py",
        "Node.leaders",
        "        self._require_own_process()\n",
        "",
        tests=_REFUSED,
    ),
    Mutant(
        "a child that a state machine forked is refused as a state machine is",
        THREADS,
        "_forked",
        "False, True, None",
        "False, here.may_wait, None",
        tests=_OWN_THREAD,
    ),
    Mutant(
        "callbacks of futures run in the loop",
        THREADS,
        "run_callback",
        "worker is None",
        "True",
        tests=_MAY_WAIT,
    ),
    Mutant(
        "a state machine may await",
        FUTURE,
        "Future.__await__",
        "            threads.require_waiting(",
        "            str(",
        tests=_MUST_NOT_WAIT,
    ),
    Mutant(
        "a callback that stops a node waits for the callbacks of that node",
        "node.py",
        "Node._finish_observers",
        "not threads.here.is_own",
        "True",
        tests=(_CALLBACKS + "test_nodes_that_stop_each_other_both_stop_at_once",),
    ),
    Mutant(
        "a machine is told of what it was handed within the turn",
        "driver.py",
        "Driver._register",
        "self._notes.append((index, kind, term, payload, state))",
        "self.applier.tell(index, kind, term, payload, state)",
        tests=(_CALLBACKS + "test_a_state_machine_that_sleeps_costs_no_leadership",),
    ),
    Mutant(
        "the loop is given to a thread that cannot be started",
        THREADS,
        "LoopThread._watch",
        "                self._have_watched()\n                return True\n",
        "                start(self._name, self._serve, False)\n                continue\n",
        tests=(_LIMIT + "test_a_loop_that_is_held_up_goes_on_although_no_thread_can_be_started",),
    ),
    Mutant(
        "a loop that nothing watches stays so",
        THREADS,
        "LoopThread.begin_turn",
        "self._have_watched()",
        "pass",
        tests=(_LIMIT + "test_a_loop_without_a_watch_gets_one_as_soon_as_a_thread_can_be_started",),
    ),
    Mutant(
        "a connection that got no thread is never tried again",
        "redis_streams.py",
        "RedisStreams._begin_to_connect",
        "            slot.connecting = False\n",
        "",
        tests=(_LIMIT + "test_connections_are_made_again_as_soon_as_a_thread_can_be_started",),
    ),
    Mutant(
        "a machine is slow by the clock",
        PACE,
        "Pace.did",
        "min(took, cpu - self._cpu)",
        "took",
        tests=(_APPLY + "test_a_machine_is_slow_by_the_cpu_time_of_its_thread_and_not_by_the_clock",),
    ),
    Mutant(
        "a machine that waits is never slow",
        PACE,
        "Pace.end",
        "self._waited_us = idle",
        "pass",
        tests=(_APPLY + "test_a_machine_that_waits_is_slow_once_it_holds_up_the_loop_or_does_so_again_and_again",),
    ),
    Mutant(
        "a wait of the interpreter is the machine's",
        PACE,
        "Pace.end",
        " - (held_up_us - self._held_up_us)",
        "",
        tests=(_APPLY + "test_a_machine_is_slow_by_the_cpu_time_of_its_thread_and_not_by_the_clock",),
    ),
)
