"""``--tune``: what the price cannot decide is timed, and the fastest is taken."""
