"""Models, their versions and their deployments: state, decisions, requests, routes."""
