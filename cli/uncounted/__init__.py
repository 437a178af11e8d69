"""Records that no bill counts: dead letters and held usage, one by one and in sets."""
