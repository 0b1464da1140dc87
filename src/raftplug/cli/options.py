"""The options that commands share, and the JSON that they take: what cannot be is refused here, first of all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from raftplug.errors import InvalidArgument
from raftplug.foreign import short
from raftplug.frames import Id, check_group, check_id, parse_id
from raftplug.keys import read_key_file

_Command = TypeVar("_Command", bound=Callable[..., Any])
_LONGEST_S = 86_400.0
KeyOption = tuple[str, ...] | None
"""What --key-file gives: the keys in it; None where it was not given."""
if TYPE_CHECKING:
    from raftplug.client import Client

    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # Generic only in newer versions of click.


class _Seconds(_ParamType):
    """A time in seconds, above 0."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= _LONGEST_S:  # Also refuses NaN.
            self.fail(f"{value!r} is not a number of seconds above 0 and up to {_LONGEST_S:.0f}", param, ctx)
        return seconds


class _Id(_ParamType):
    """A node's id: what `raftplug members list` prints."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Id:
        return parse_id(value) if isinstance(value, str) else check_id(value)


class _Group(_ParamType):
    """A group's name."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return check_group(value)


class _Names(_ParamType):
    """Node ids with commas between them."""

    name = "ids"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Id, ...]:
        if isinstance(value, tuple):  # The default.
            return value
        ids = [part.strip() for part in str(value).split(",")]
        if not all(ids):
            self.fail(
                f"an id is missing in {value!r}: write ids with commas between them, such as n1,n2,n3", param, ctx
            )
        return tuple(parse_id(id) for id in ids)


class _KeyFile(_ParamType):
    """A file that holds the cluster's key; what comes of it is the key, or two."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else read_key_file(value)


class NamedPath(click.Path):
    """A path that is not empty: pathlib would take an empty one for the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("the path is empty: name a file or directory", param, ctx)
        return super().convert(value, param, ctx)


SECONDS = _Seconds()
NODE_ID = _Id()
NODE_IDS = _Names()
GROUP = _Group()

redis = click.option(
    "--redis",
    metavar="URL",
    envvar="RAFTPLUG_REDIS",
    required=True,
    help="The Redis that carries the messages, such as redis://localhost:6379, or another installed transport. "
    "Also from the environment: RAFTPLUG_REDIS.",
)
group = click.option("--group", type=GROUP, metavar="NAME", default="default", show_default=True, help="The group.")
prefix = click.option(
    "--prefix", metavar="TEXT", default="raftplug", show_default=True, help="What every key in Redis begins with."
)
key = click.option(
    "--key-file",
    "key",
    type=_KeyFile(),
    metavar="FILE",
    help="The file that holds the cluster's key, the same for every node and client; two keys while one is rotated. "
    "The key itself also from the environment: RAFTPLUG_CLUSTER_KEY.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, as the last line of stdout.")


def timeout(default: float) -> Callable[[_Command], _Command]:
    """The option --timeout, in seconds."""
    return click.option(
        "--timeout",
        type=SECONDS,
        metavar="S",
        default=default,
        show_default=True,
        help="Seconds to wait for an answer.",
    )


def open_client(redis: str, group: str, prefix: str, key: KeyOption, session: str | None = None) -> Client:
    """A client as the options say, with the settings of the environment, so that they are the nodes'."""
    from raftplug.client import Client
    from raftplug.settings import Settings

    return Client(redis, group, prefix=prefix, settings=Settings.load(), key=key, session=session)


def parse_json(text: str | bytes, what: str) -> Any:
    """The plain data that `text` says in JSON.

    Args:
        text: JSON; bytes are UTF-8.
        what: what it is, for the message: "the transition".

    Raises:
        InvalidArgument: it is not JSON; the message names the position.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{what} is not JSON: byte {error.start + 1} is not UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise InvalidArgument(f"{what} is not JSON: {error.msg.rstrip(':')} at {where}") from None
    except RecursionError:
        raise InvalidArgument(f"{what} is nested too deep") from None
    except ValueError as error:  # A constant, or a number with thousands of digits.
        raise InvalidArgument(f"{what} is not JSON that raftplug takes: {error}") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):  # Which JSON cannot say, so that what is stored could not be printed again.
        raise ValueError(f"{short(digits, 20)} is larger than a float can be")
    return number
