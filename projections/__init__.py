"""What it looks like: folds of the log into ClickHouse tables, and the questions people ask of them."""
