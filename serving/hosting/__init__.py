"""How a gateway process is started: as a replica of Ray Serve, or standalone."""
