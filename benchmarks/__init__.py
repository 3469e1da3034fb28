"""Side by side measurements; no test asserts a time."""
