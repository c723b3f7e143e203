"""Logs of training runs: reading them, finding the lines that signatures know, and telling causes from effects."""
