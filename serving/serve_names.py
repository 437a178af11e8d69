"""Names that the controller gives Ray Serve and that its processes use: applications, deployments, builders."""

APPLIED_APP = "applied"
APPLIED_DEPLOYMENT = "applied"
"""No process runs it: its `user_config` is where the controller keeps the version of the applied configuration (K18)."""
MODEL_DEPLOYMENT = "model"
"""In each application of a model version; the application has the version's address as its name."""
BUILD_MODEL = "serving.replicas.ray_model:build_model"
BUILD_APPLIED = "serving.replicas.ray_applied:build_applied"
