"""Fair shares of what several tenants wait for (K28): the queue that takes from each in turn, and how much of each runs at a time."""
