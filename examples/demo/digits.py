"""Two classifiers of handwritten digits, trained in a second from the images that scikit-learn ships, as ONNX."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

SEED = 20261120


@dataclass(frozen=True)
class Trained:
    """A model file and what its owner says of it."""

    version: str
    onnx: bytes
    accuracy: float
    framework: str
    notes: str
    hyperparameters: dict[str, str]

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.onnx).hexdigest()}"


@dataclass(frozen=True)
class Images:
    """All 1 797 images: `pixels` float32 [n, 64] in 0 … 16, `labels` int64 [n]."""

    pixels: Any
    labels: Any


def images() -> Images:
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    return Images(data.data.astype(np.float32), data.target.astype(np.int64))


def train() -> list[Trained]:
    """1.0.0, a logistic regression, and 1.1.0, a small network that is better."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    all_images = images()
    x, x_test, y, y_test = train_test_split(all_images.pixels, all_images.labels, test_size=0.25, random_state=SEED)
    candidates: list[tuple[str, Any, str, dict[str, str]]] = [
        ("1.0.0", LogisticRegression(max_iter=300, C=0.01), "first version: a logistic regression", {"C": "0.01"}),
        ("1.1.0", MLPClassifier((64,), solver="lbfgs", random_state=SEED), "a hidden layer of 64: fewer mistakes", {"hidden": "64"}),
    ]
    trained: list[Trained] = []
    for version, classifier, notes, hyperparameters in candidates:
        pipeline = make_pipeline(StandardScaler(), classifier)
        with threadpool_limits(1):  # sums in one order: the same weights, and so the same digest, on every machine
            pipeline.fit(x, y)
        accuracy = float(pipeline.score(x_test, y_test))
        trained.append(Trained(version, _to_onnx(pipeline), accuracy, "scikit-learn", notes, hyperparameters | {"seed": str(SEED)}))
    return trained


def _to_onnx(pipeline: Any) -> bytes:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    final = pipeline.steps[-1][1]
    inputs: Any = [("image", FloatTensorType([None, 64]))]  # its own types do not accept what its documentation says
    model: Any = to_onnx(pipeline, initial_types=inputs, options={id(final): {"zipmap": False}}, target_opset=17)
    # The exporter names its graph at random; the same training must give the same digest.
    model.graph.name = "digits"
    return bytes(model.SerializeToString(deterministic=True))


INPUTS = [{"name": "image", "datatype": "FP32", "shape": [-1, 64]}]
OUTPUTS = [{"name": "label", "datatype": "INT64", "shape": [-1]}, {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}]
