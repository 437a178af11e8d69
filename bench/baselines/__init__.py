"""What benchmarks compare with: a plain Ray Serve, a stock Faust agent, a broker without security."""
