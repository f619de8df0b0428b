"""`map_tasks`: calls a function with items in several processes, without a server to start."""

from ._map import map_tasks as map_tasks
