"""What proves that a gateway wrote a usage record: the certified key of its epoch, and the chain of what the epoch wrote (K13)."""
