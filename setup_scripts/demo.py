"""
Registers the tasks of the examples, before the first visitor comes.

    panel serve examples/*.py --index examples/index.py --setup setup_scripts/demo.py
"""

import sys
from pathlib import Path

# A setup script is run by itself: neither its folder nor the working directory is on the path.
sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import panel_material_ui  # noqa: F401  (under --num-procs, each process has to know the files of the theme)

import tasks.explorer
import tasks.machine
import tasks.portfolio
import tasks.quakes
import tasks.stocks  # noqa: F401
