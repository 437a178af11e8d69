"""The deployments of a model: deploy, roll out, promote, roll back, undeploy."""
