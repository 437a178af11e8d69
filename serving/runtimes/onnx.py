"""Runs ONNX models with ONNX Runtime: one session per replica, one thread unless the settings say more."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import onnxruntime as ort

from serving.inference import DTYPES, OutputTensor, Predicted, Prediction, PredictionFailed, RunInput, Wanted, bytes_elements
from serving.model_interface import Interface, Tensor
from serving.runtimes.answer_size import ReplyRoom, numbers_size, texts_size, too_large
from serving.runtimes.cpu_clock import CpuClock, threads_of_process
from serving.runtimes.runtime import LoadFailed, split_by_weight

logger = logging.getLogger(__name__)

PROBE_SCALES = (1.0, 3.0, 10.0)
"""The scale of the random values of each probe row."""
TOLERANCE, TOLERANCE_FP16 = 1e-4, 1e-2
"""Relative difference between a row's answers in a batch and alone that may come from the order of additions."""
MESSAGE_CHARS_MAX = 300
"""ONNX Runtime's messages carry whole graphs at times."""


class OnnxRuntime:
    """Implements `Runtime`. The bytes were verified against their digest by the caller."""

    def __init__(self, model: bytes, interface: Interface, threads: int = 1, answer_bytes_max: int = 16 << 20) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A file may be of two formats at once: what was read and reviewed is the ONNX one.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        self._giving_back = ort.RunOptions()
        self._giving_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._was_large = False
        before = threads_of_process()
        try:
            self._session = ort.InferenceSession(model, options, providers=_providers())
        except Exception as e:  # ONNX Runtime raises its own classes and plain RuntimeError
            raise LoadFailed("not_loadable", str(e)[:MESSAGE_CHARS_MAX]) from e
        self._interface, self._answer_bytes_max = interface, answer_bytes_max
        # With one thread the session runs in the calling thread; else it has made its own.
        self._cpu = CpuClock(threads_of_process() - before if threads > 1 else ())
        self._outputs = [o.name for o in interface.outputs]
        self._rows_independent = False
        in_file = {i.name for i in self._session.get_inputs()}, {o.name for o in self._session.get_outputs()}
        declared = {i.name for i in interface.inputs}, set(self._outputs)
        if in_file[0] != declared[0] or not declared[1] <= in_file[1]:
            raise LoadFailed(
                "interface_mismatch", f"the file has inputs {sorted(in_file[0])} and outputs {sorted(in_file[1])}"[:MESSAGE_CHARS_MAX]
            )

    def warm_up(self) -> None:
        shapes = tuple(tuple(1 if n == -1 else n for n in t.shape) for t in self._interface.inputs)
        zeros = tuple(_zeros(t.datatype, shape) for t, shape in zip(self._interface.inputs, shapes, strict=True))
        # The result does not matter: a model may refuse zeros.
        self.predict([RunInput((1,), shapes, zeros, ((),))])
        self._rows_independent = self._interface.stackable and self._rows_are_independent()
        if self._interface.stackable and not self._rows_independent:
            logger.warning("the rows of this model's inputs are not independent: each call runs alone, never in one batch with others")

    def predict(self, runs: Sequence[RunInput]) -> list[Prediction]:
        room = ReplyRoom(sum(len(run.rows) for run in runs), self._answer_bytes_max)
        results: list[Prediction] = []
        for run in runs:
            if len(run.rows) == 1:
                results.append(self._run_alone(run, room))
            elif self._rows_independent:
                results += self._run_stacked(run, room)
            else:
                results += [self._run_alone(single, room) for single in _singles(run, self._interface)]
        return results

    def close(self) -> None:
        del self._session

    def _rows_are_independent(self) -> bool:
        """Whether a row's answer is the same in a batch as alone, tried with random rows (K16). A free first dimension does not promise it: the
        model may sum or normalise along it, and one caller's values would be in another's answer. What cannot be tried is not stacked."""
        random = np.random.default_rng(0)
        try:
            rows = [_probe_rows(random, t) for t in self._interface.inputs]
            stacked = self._feed(rows)
            alone = [self._feed([column[i : i + 1] for column in rows]) for i in range(len(PROBE_SCALES))]
        except Exception as e:  # for any reason: independence was not shown
            logger.info("rows could not be tried in one batch: %s", str(e)[:MESSAGE_CHARS_MAX])
            return False
        return all(_alike(whole, [outputs[n] for outputs in alone]) for n, whole in enumerate(stacked))

    def _run_stacked(self, run: RunInput, room: ReplyRoom) -> list[Prediction]:
        with self._cpu.run() as used:
            try:
                outputs, cpu_us = self._run(run), used.us
            except Exception:  # one of the calls failed, or all: each is run alone
                outputs, cpu_us = None, 0
        total = sum(run.rows)
        if outputs is None or any(not o.shape or o.shape[0] != total for o in outputs):
            return [self._run_alone(single, room) for single in _singles(run, self._interface)]
        results: list[Prediction] = []
        at = 0
        for rows, wanted, share_us in zip(run.rows, run.wanted, split_by_weight(cpu_us, run.rows), strict=True):
            answer = self._answer([o[at : at + rows] for o in outputs], wanted, room)
            results.append(Predicted(answer, share_us) if isinstance(answer, tuple) else replace(answer, cpu_us=share_us))
            at += rows
        return results

    def _run_alone(self, run: RunInput, room: ReplyRoom) -> Prediction:
        with self._cpu.run() as used:
            try:
                outputs = self._run(run)
            except Exception as e:  # whatever the model raises concerns this call only
                return PredictionFailed(str(e)[:MESSAGE_CHARS_MAX] or type(e).__name__, used.us)
            (wanted,) = run.wanted
            answer = self._answer(outputs, wanted, room)
            return Predicted(answer, used.us) if isinstance(answer, tuple) else replace(answer, cpu_us=used.us)

    def _answer(
        self, outputs: Sequence[np.ndarray[Any, Any]], wanted: Wanted, room: ReplyRoom
    ) -> tuple[OutputTensor, ...] | PredictionFailed:
        """The outputs that a call asked for, copied if they are within its bound and there is room for them."""
        size = sum(_answer_size(outputs[index], self._interface.outputs[index].datatype, as_binary) for index, as_binary in wanted)
        if size > self._answer_bytes_max:
            return PredictionFailed(too_large(size, self._answer_bytes_max), 0)
        if not room.take(size):
            return PredictionFailed("", 0, reply_full=True)
        return tuple(_wire(outputs[index]) for index, _ in wanted)

    def _run(self, run: RunInput) -> list[np.ndarray[Any, Any]]:
        feeds = {
            t.name: _array(raw, t.datatype, shape) for t, raw, shape in zip(self._interface.inputs, run.tensors, run.shapes, strict=True)
        }
        return self._session_run(feeds)

    def _feed(self, columns: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        return self._session_run({t.name: column for t, column in zip(self._interface.inputs, columns, strict=True)})

    def _session_run(self, feeds: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """ONNX Runtime keeps the memory of its largest run for ever: the run after a large one gives back what it does not need itself, but
        never the first piece of its arena."""
        options, self._was_large = self._giving_back if self._was_large else None, True
        outputs = cast("list[np.ndarray[Any, Any]]", self._session.run(self._outputs, feeds, options))
        self._was_large = sum(output.nbytes for output in outputs) > self._answer_bytes_max
        return outputs


def _probe_rows(random: np.random.Generator, tensor: Tensor) -> np.ndarray[Any, Any]:
    """Rows of a tensor's type; free inner dimensions are two. Whole numbers are 0 or 1: if they are indices they stay valid."""
    shape = (len(PROBE_SCALES), *(2 if n == -1 else n for n in tensor.shape[1:]))
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        return random.integers(0, 2, shape).astype(str).astype(object)
    if np.issubdtype(dtype, np.floating):
        return (random.standard_normal(shape) * np.reshape(PROBE_SCALES, (-1, *(1 for _ in shape[1:])))).astype(dtype)
    return random.integers(0, 2, shape).astype(dtype)


def _alike(whole: np.ndarray[Any, Any], parts: Sequence[np.ndarray[Any, Any]]) -> bool:
    joined = np.concatenate(parts)
    if whole.shape != joined.shape:
        return False
    if not np.issubdtype(whole.dtype, np.floating):
        return bool(np.array_equal(whole, joined))
    # The order of additions depends on the number of rows, and with it the last bits.
    tolerance = TOLERANCE_FP16 if whole.dtype == np.float16 else TOLERANCE
    finite = np.abs(joined[np.isfinite(joined)])
    size = float(finite.max()) if finite.size else 0.0
    return bool(np.allclose(whole.astype(np.float64), joined.astype(np.float64), rtol=tolerance, atol=tolerance * size, equal_nan=True))


def _providers() -> list[str]:
    available = ort.get_available_providers()
    return [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available]


def _array(raw: Any, datatype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    dtype = DTYPES.get(datatype)
    if dtype is not None:
        return np.frombuffer(raw, dtype).reshape(shape)
    return np.array([e.decode() for e in bytes_elements(raw)], dtype=object).reshape(shape)


def _zeros(datatype: str, shape: tuple[int, ...]) -> bytes:
    count = int(np.prod(shape)) if shape else 1
    dtype = DTYPES.get(datatype)
    return bytes(count * (dtype.itemsize if dtype is not None else 4))  # four zero bytes are an empty BYTES element


def _answer_size(array: np.ndarray[Any, Any], datatype: str, as_binary: bool) -> int:
    return texts_size(_texts(array), as_binary) if array.dtype == object else numbers_size(array.nbytes, datatype, as_binary)


def _texts(array: np.ndarray[Any, Any]) -> Iterator[bytes]:
    return (v.encode() if isinstance(v, str) else bytes(v) for v in array.ravel())


def _wire(array: np.ndarray[Any, Any]) -> OutputTensor:
    if array.dtype == object:
        return OutputTensor(array.shape, b"".join(len(e).to_bytes(4, "little") + e for e in _texts(array)))
    return OutputTensor(array.shape, array.tobytes())


def _singles(run: RunInput, interface: Interface) -> list[RunInput]:
    """The calls of a run, each as a run of its own."""
    arrays = [_array(raw, t.datatype, shape) for t, raw, shape in zip(interface.inputs, run.tensors, run.shapes, strict=True)]
    singles: list[RunInput] = []
    at = 0
    for rows, wanted in zip(run.rows, run.wanted, strict=True):
        parts = [_wire(a[at : at + rows]) for a in arrays]
        singles.append(RunInput((rows,), tuple(p.shape for p in parts), tuple(p.data for p in parts), (wanted,)))
        at += rows
    return singles
