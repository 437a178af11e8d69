"""What the log's side of a bill goes on from: made from the log alone, kept in files that may be lost at any time."""
