"""The controller: Ray Serve as the deployment facts say."""
