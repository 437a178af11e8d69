"""Bodies of calls: their bytes in memory, and the process that parses large ones and writes large answers."""
