"""HTTP in front of the commands: the application, request bodies, problem documents."""
