"""The faults: `table` names them, each of the others does those of one kind, and `scheduler` chooses."""
