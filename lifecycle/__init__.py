"""What a model is now: one typed, exhaustive fold of models, versions and deployments."""
