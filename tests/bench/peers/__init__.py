"""
The schedulers that are compared, each behind the same three functions.

``start(loop)`` on a running event loop, ``every_second(name, function, offset)`` for a task that is due
`offset` seconds past each full second, and ``daily(name, function)`` for one that is due tomorrow.
"""
