"""The edge: it answers calls, meters each one before it is answered, and keeps Ray as the facts say."""
