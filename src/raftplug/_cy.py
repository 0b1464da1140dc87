"""Stands in for the `cython` module while the rules run interpreted, so that nothing needs Cython at run time.

`raft.py` and `configuration.py` are written in Cython's pure-Python mode and begin with
`from raftplug import _cy as cython`.  Compiled, that import folds away; interpreted, every name below means nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

_T = TypeVar("_T")

compiled: Final = False
longlong = int
bint = bool


def cclass(thing: _T) -> _T:
    """Do nothing: the decorator matters to the compiler only.  So do all the others."""
    return thing


cfunc = ccall = inline = final = no_gc = cclass


def freelist(size: int) -> Callable[[_T], _T]:
    """Keep so many freed objects for the next ones, when compiled."""
    return cclass


def trashcan(flag: bool) -> Callable[[_T], _T]:
    """Free a chain of objects, however long, without recursion, when compiled."""
    return cclass


def declare(type_: object, value: object = None, *, visibility: str = "private") -> Any:
    """Give an attribute a C type and make it visible, when compiled."""
    return value


def locals(**types: object) -> Callable[[_T], _T]:
    """Give local variables C types, when compiled."""
    return cclass


def returns(type_: object) -> Callable[[_T], _T]:
    """Give the result a C type, when compiled."""
    return cclass


def exceptval(value: object = None, *, check: bool = True) -> Callable[[_T], _T]:
    """Say which result signals an exception, when compiled."""
    return cclass
