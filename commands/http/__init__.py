"""What every feature needs of HTTP: the application, headers, bounds, answers, problem documents."""
