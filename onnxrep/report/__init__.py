"""Frozen records of a run, and their forms: text and JSON. Computes nothing."""
