"""The contenders of `benchmarks.train_throughput`, each a program that runs in a process of its own."""
