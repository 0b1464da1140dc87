"""Clients: what they ask, of whom, and what they are told."""

from mutants.mutant import Mutant

CLIENT = "client.py"

MUTANTS: tuple[Mutant, ...] = ()
