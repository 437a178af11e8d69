"""Records that could not be read: published, listed, read again."""
