"""An application without processes: Ray keeps its `user_config`, the version of the applied configuration, with the configuration (K18)."""

from __future__ import annotations

from typing import Any

from ray import serve

from serving.serve_names import APPLIED_DEPLOYMENT


class Applied:
    """Never made: nobody calls it, and it scales from zero."""

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve asks that whoever has a `user_config` takes it."""


def build_applied(args: dict[str, Any]) -> serve.Application:
    """`args` tells nothing but the attempt (`serve_plan.attempt_of`)."""
    plain: Any = serve.deployment(Applied)
    none = {"min_replicas": 0, "max_replicas": 1, "initial_replicas": 0}
    return plain.options(name=APPLIED_DEPLOYMENT, autoscaling_config=none, ray_actor_options={"num_cpus": 0}).bind()
