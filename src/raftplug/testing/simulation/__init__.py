"""The simulator: whole nodes and clients on a fake clock, network and disk, under faults, one seed at a time.

One thread, one seed, no wall clock: the same seed gives the same trace on both cores.  What runs is what runs in
production (`NodeLoop`, `Driver`, `RecordStorage`, `ClientLoop`); what is faked lies below it: the clock, the transport,
the rows of the disk, the process.  After every event the invariants of Raft are checked (Ongaro 2014, figure 3.2), and
that an acknowledgement means synced on a quorum of disks.  Then the faults stop for a random majority, which must
elect, commit and converge.

::

    report = Simulation(seed=7).run()
    assert report.violation is None, report.violation

`world` ties it together.  `plan` is what a seed chooses; `process` is a node's, with its `disk` and what is known of
that (`account`), the `machines` that it runs and an `observer`; `network` and `messages` lie between processes;
`client` and `callers` ask; `ledger` compares what they are told of each transition with what became of it, `answers`
what they read, and `deadlines` sees to it that each of them is told in time; `faults` happen, `invariants` must hold,
also of `companions`, and `liveness` returns; in the end everything is `settled`, or something stays `broken`; `report`
is what comes out.
"""

from raftplug.testing.simulation.disk import SimulatedRows
from raftplug.testing.simulation.faults.table import FAULTS
from raftplug.testing.simulation.machines import (
    Batching,
    BatchRegister,
    DiskBatchRegister,
    DiskRegister,
    Register,
    StreamBatchRegister,
    StreamRegister,
)
from raftplug.testing.simulation.plan import COMPANIONS, EVENTS, GROUP
from raftplug.testing.simulation.report import Recorded, Report, Violation
from raftplug.testing.simulation.world import Simulation

__all__ = [
    "COMPANIONS",
    "EVENTS",
    "FAULTS",
    "GROUP",
    "BatchRegister",
    "Batching",
    "DiskBatchRegister",
    "DiskRegister",
    "Recorded",
    "Register",
    "Report",
    "SimulatedRows",
    "Simulation",
    "StreamBatchRegister",
    "StreamRegister",
    "Violation",
]
