# The compiled core is, name for name, the Python one: so its types are those.
from raftplug._core_py import Log as Log
from raftplug._core_py import Message as Message
from raftplug._core_py import Progress as Progress

SOURCE_HASH: str
