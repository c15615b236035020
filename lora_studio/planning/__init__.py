"""Planning: steps, memory, time, trigger words, advice and verdicts. Arithmetic and look-ups, no torch."""
