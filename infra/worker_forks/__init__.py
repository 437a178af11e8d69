"""Ray's worker processes as forks of one process that has imported what all of them need."""
