"""From the store to the log, in the order of decision."""
