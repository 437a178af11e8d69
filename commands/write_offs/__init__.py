"""Write-offs of unreadable records and dead producer epochs, by two people."""
