"""All readers of a model's lifecycle agree after any history: commands, catalog, gateway and controller."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from commands.deployments import decide as deployment_decide
from commands.deployments.decide import AdvanceRollout, DeployVersion, PromoteRollout, RollBack, StartRollout, UndeployVersion
from commands.models import decide as model_decide
from commands.models.decide import AddVersion, ModelCommand, RegisterModel, RetireModel, ReviewVersion, SubmitVersion
from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected
from events.facts.deployments import RouteApplied, ServiceSpec, VersionFailed, VersionReady
from events.facts.fact import Fact, ModelId, ModelVersion, TenantId, UserId
from events.facts.models import Compliance, Registration, Technical, TensorSpec, VersionContent
from events.facts.topics import entry_of
from events.log.record import Coordinate
from events.schema.codec import Codec, Schema, SchemaSet, todays_schemas
from lifecycle.deployment import Shifting, live_of, loaded
from lifecycle.model import NoModel, RetiredModel
from lifecycle.state import Lifecycle, evolve
from projections.catalog.documents import evolve as document_after
from projections.catalog.lifecycle_documents import model_in, status_in
from projections.catalog.parts import join, split
from projections.catalog.queries import _model  # pyright: ignore[reportPrivateUsage]
from serving.control.serve_plan import AppliedConfig, ApplyConfig, ConfigVersion, plan
from serving.gateway.routes import Routes
from serving.serve_names import APPLIED_APP

MODEL = ModelId("model-vision-core-digits")
VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "1.3.0")
X = TensorSpec(name="x", datatype="FP32", shape=(-1,))
TECHNICAL = Technical(format="onnx", framework="f", precision="FP32", inputs=(X,), outputs=(X,))
COMPLIANCE = Compliance(licence="MIT", data_sources=("uci",), data_level="public")
REGISTRATION = Registration(domain="vision", team="core", name="digits", scenario="s", task="t", compliance=COMPLIANCE)
CONTENT = VersionContent(technical=TECHNICAL, artifact="sha256:" + "0" * 64)
REGISTER = RegisterModel(MODEL, TenantId("acme"), UserId("o"), REGISTRATION)


def codec() -> Codec:
    schemas = SchemaSet()
    for i, (subject, definition) in enumerate(todays_schemas().items(), 1):
        schemas.add(Schema.of(i, subject, definition))
    return Codec(schemas)


CODEC = codec()


class Market:
    """One model, as each of its four readers has folded it. Facts reach the readers as bytes, as they do on the log."""

    def __init__(self) -> None:
        self.decided = Lifecycle()
        self.documents: dict[str, dict[str, Any]] = {"models": {}, "deployments": {}}
        self.routes = Routes()
        self.position = 0

    def command(self, command: Any, user: str = "ops") -> None:
        """What is refused changes nothing."""
        context = CommandContext("00000000-0000-4000-8000-000000000000", self.position + 1, UserId(user), "", "")
        decide: Any = model_decide.decide if isinstance(command, ModelCommand) else deployment_decide.decide
        facts = decide(self.decided, command, context)
        if isinstance(facts, Rejected):
            return
        for fact in facts:
            self.decided = evolve(self.decided, fact)
            self.position += 1
            self.read(fact, decided=True)

    def observe(self, kind: type[VersionReady | VersionFailed | RouteApplied], version: str, before: int) -> None:
        """What a controller or a gateway that has folded up to `before` positions ago reports."""
        head: dict[str, Any] = {"event_id": "00000000-0000-0000-0000-000000000001", "occurred_at": 1, "producer": "c", "model": MODEL}
        position = max(0, self.position - before)
        if kind is VersionReady:
            self.read(VersionReady(**head, model_version=ModelVersion(version), replicas=2, position=position))
        elif kind is VersionFailed:
            self.read(VersionFailed(**head, model_version=ModelVersion(version), error_code="broken", message="a: b", position=position))
        else:
            self.read(RouteApplied(**head, gateway="g", epoch="e", position=position, weights={version: 100}))

    def read(self, fact: Fact, decided: bool = False) -> None:
        name, body = CODEC.decode(CODEC.encode(fact))
        topic = entry_of(fact).topic
        self.documents[topic] = document_after(topic, self.documents[topic], name, body, self.position)
        self.routes.apply(name, body | {"position": self.position} if decided else body, Coordinate(topic, 0, self.position))

    # --- the view of each reader

    def catalog(self) -> dict[str, Any]:
        def copy(topic: str) -> dict[str, Any]:
            """As it comes back from the table, in parts."""
            return join(topic, json.loads(json.dumps(split(topic, self.documents[topic]))))

        return _model(copy("models"), copy("deployments"), {"position": 0, "changed_at": 0})

    def planned(self) -> set[str]:
        decided = plan(self.routes.versions(), ConfigVersion("log", "store", self.position), AppliedConfig(None))
        assert isinstance(decided, ApplyConfig)
        return {app["args"]["model_version"] for app in decided.config["applications"] if app["name"] != APPLIED_APP}

    def check(self) -> None:
        known = self.decided.model
        if isinstance(known, NoModel):
            assert self.routes.models == {} and self.documents["models"] == {}
            return
        shown, routed, now = self.catalog(), self.routes.models[MODEL], self.decided.deployment
        retired = isinstance(known, RetiredModel)
        assert retired == (shown["retired"] is not None) == (routed.retired is not None)
        assert {v: state.kind for v, state in known.versions.items()} == {
            v: version_shown["status"] for v, version_shown in shown["versions"].items()
        }
        assert known.versions.keys() == routed.versions.keys()
        self._check_traffic(shown, retired)
        there = set() if retired else set(loaded(now))
        deployed = {v: version_shown["deployment"] for v, version_shown in shown["versions"].items() if version_shown["deployment"]}
        assert there == {v for v, version_shown in deployed.items() if version_shown["status"] != "undeployed"}
        assert there == {v.version for v in self.routes.versions() if v.deployed} == self.planned()
        assert {v for v in there if deployed[v]["ready"]} == {v.version for v in routed.versions.values() if v.ready}
        # The documents and the snapshot hold the whole state.
        assert model_in(self.documents["models"]) == routed.lifecycle
        assert status_in(self.documents["deployments"]).deployment == now == routed.status.deployment
        assert status_in(self.documents["deployments"]).versions == routed.status.versions
        copy = Routes()
        copy.load(b"".join(self.routes.dump()))
        assert (copy.models[MODEL].lifecycle, copy.models[MODEL].status) == (routed.lifecycle, routed.status)
        assert copy.models[MODEL].route == routed.route

    def _check_traffic(self, shown: dict[str, Any], retired: bool) -> None:
        routed, now = self.routes.models[MODEL], self.decided.deployment
        assert shown["weights"] == dict(routed.route.weights)
        assert shown["serving"] == (routed.route.steady[0][0] if routed.route.steady else "")
        if retired:
            assert (shown["weights"], shown["live"], shown["status"]) == ({}, "", "retired")
            return
        assert shown["live"] == routed.live == live_of(now)
        candidate, share = (now.candidate, now.weight_percent) if isinstance(now, Shifting) else ("", 0)
        assert (shown["candidate"], self.documents["deployments"].get("weight_percent", 0)) == (candidate, share)
        assert routed.route.canary in (None, candidate)
        if routed.route.canary:
            assert dict(routed.route.weights)[candidate] == share


VERSION = st.sampled_from(VERSIONS)
SPEC = st.sampled_from((ServiceSpec(), ServiceSpec(batch_max=7)))
COMMANDS = st.one_of(
    st.builds(DeployVersion, VERSION, SPEC),
    st.builds(StartRollout, VERSION, st.integers(1, 99), st.one_of(st.none(), SPEC)),
    st.builds(AdvanceRollout, st.integers(1, 99)),
    st.just(PromoteRollout()),
    st.builds(RollBack, st.just("r"), st.sampled_from(("", *VERSIONS))),
    st.builds(UndeployVersion, VERSION, st.just("r")),
)
REVIEWS = st.one_of(
    st.builds(SubmitVersion, VERSION),
    st.builds(ReviewVersion, VERSION, st.sampled_from(("business", "security")), st.sampled_from(("approved", "approved", "rejected"))),
    st.builds(AddVersion, VERSION, st.just(1), st.just(CONTENT)),
    st.just(RetireModel("old")),
)
OBSERVED = st.tuples(st.sampled_from((VersionReady, VersionReady, VersionFailed, RouteApplied)), VERSION, st.integers(0, 3))
USERS = st.sampled_from(("owner", "bea", "sam"))
STEPS = st.one_of(COMMANDS, COMMANDS, OBSERVED, OBSERVED, st.tuples(REVIEWS, USERS))


def approved(market: Market, *versions: str) -> None:
    market.command(REGISTER, "owner")
    for v in versions:
        market.command(AddVersion(v, 1, CONTENT), "owner")
        market.command(SubmitVersion(v), "owner")
        market.command(ReviewVersion(v, "business", "approved"), "bea")
        market.command(ReviewVersion(v, "security", "approved"), "sam")


def run_steps(market: Market, steps: list[Any]) -> None:
    for step in steps:
        match step:
            case (type() as kind, str() as version, int() as before):
                market.observe(kind, version, before)
            case (command, str() as user):
                market.command(command, user)
            case command:
                market.command(command)
        market.check()


LIVE = (DeployVersion("1.0.0", ServiceSpec()), (VersionReady, "1.0.0", 0))
CANARY = (*LIVE, StartRollout("1.1.0", 20), (VersionReady, "1.1.0", 0))
ALONE = (*CANARY, PromoteRollout(), UndeployVersion("1.0.0", "done"))
"""Histories that chance alone seldom makes; what comes after them is chance."""


@settings(max_examples=150)
@given(st.sampled_from((0, 2, 3, 4)), st.sampled_from(((), LIVE, CANARY, ALONE)), st.lists(STEPS, max_size=15))
def test_after_any_history_all_readers_agree(ready: int, begun: tuple[Any, ...], steps: list[Any]) -> None:
    market = Market()
    market.check()
    approved(market, *VERSIONS[:ready])
    run_steps(market, [*begun, *steps])


def test_all_readers_agree_on_a_rollback_to_a_version_that_is_not_loaded() -> None:
    market = Market()
    approved(market, "1.0.0", "1.1.0")
    run_steps(market, list(ALONE))
    market.command(RollBack("bad", "1.0.0"))
    market.check()
    shown = market.catalog()
    assert (shown["live"], shown["serving"], shown["weights"], shown["status"]) == ("1.0.0", "1.1.0", {"1.1.0": 100}, "loading")
    assert market.planned() == {"1.0.0", "1.1.0"}
