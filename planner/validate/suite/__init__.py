"""Many small validations at once: measured case by case, set beside today's plans, told as a table.

A suite is data (`case.Case`); `measure` runs what is not yet recorded, `records` keeps what was
measured as text, `beside` plans it again, `table` writes the result down, `command` is the command.
"""
