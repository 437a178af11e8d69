"""Names that the controller gives Ray Serve and that its processes use: applications, deployments, builders."""

GATEWAY_APP = "gateway"
GATEWAY_DEPLOYMENT = "gateway"
MODEL_DEPLOYMENT = "model"
"""In each application of a model version; the application has the version's address as its name."""
BUILD_MODEL = "serving.replicas.ray_model:build_model"
BUILD_GATEWAY = "serving.hosting.ray_gateway:build_gateway"
