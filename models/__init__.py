"""Models for tests, demo and benchmarks: real exports without their weights, and builders of published blocks."""
