"""Imported by the process that ranks are forked from."""

from planner.validate.worker import preload

preload()
