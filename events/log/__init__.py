"""The log: its client, its topics and schemas, the chain of decided records, and the folds that follow it."""
