"""What happened: the vocabulary of facts and the log they live on. Everything else in this project imports this room, and it imports none."""
