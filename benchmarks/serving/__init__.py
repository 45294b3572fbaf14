"""What a guard costs a server and transformers' generate: throughput, latency, memory."""
