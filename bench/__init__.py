"""How fast it is: named benchmarks on the real parts, each beside a baseline of the same run."""
