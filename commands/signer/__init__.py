"""The one process that holds the market's key, and says with it whose a producer epoch's key is."""
