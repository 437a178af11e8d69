"""Who may do what: principals, API keys and one set of refusals. Pure, and used by every listener."""
