"""What runs inside Ray Serve."""
