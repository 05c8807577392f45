"""
What each Python that a test starts does first; `conftest` sees to it.

At its end it does not look for cycles among all of Panel's objects: that takes half a second, hundreds of times.
"""

import atexit
import gc

atexit.register(gc.freeze)  # called after all others
