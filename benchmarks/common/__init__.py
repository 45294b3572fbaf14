"""What several benchmarks measure with: stopwatch, machine, server, streams."""
