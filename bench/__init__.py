"""Measures costs, crashes, backlogs, memory, and how one customer's events delay another's."""
