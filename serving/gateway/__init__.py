"""The gateway: from an HTTP request to a metered answer."""
