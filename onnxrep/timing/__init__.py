"""How long models take: interleaved rounds, honest intervals, time per op type."""
