"""TensorBoard files of a run that the harness writes: its options and scores, and what it used.

They are written with TensorBoard's own record format, without torch, which takes seconds to import.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlopt.study.files import write_bytes

# TensorBoard reads the files of a folder in the order of their names: this one comes after those of a run's own logger.
OUTCOME = "events.out.tfevents.outcome"


def flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | bool]:
    """Return nested options by dotted names; lists and None as text.

    Example:
        >>> flatten({"lr": 0.1, "replay": {"name": "per", "alpha": 0.6}, "widths": [64, 64]})
        {'lr': 0.1, 'replay.name': 'per', 'replay.alpha': 0.6, 'widths': '[64, 64]'}
    """
    flat: dict[str, str | float | bool] = {}
    for name, value in options.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, (str, bool, int, float)) else json.dumps(value)
    return flat


def write_outcome(folder: Path, config: Mapping[str, Any], final: float, evaluations: Sequence[tuple[int, float]]) -> None:
    """Write the options of a finished run as TensorBoard's hparams, with its final score and its evaluations.

    The tab HPARAMS then has a row for each finished run of the study, with `final_score` as its metric.

    Args:
        folder: The folder of the run.
        config: Its options; nested ones get dotted names.
        final: The final score.
        evaluations: Steps and scores, at least one.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    now = time.time()
    start = plugin_data_pb2.SessionStartInfo(start_time_secs=now)
    for name, value in flatten(config).items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, (int, float)):
            start.hparams[name].number_value = value
        else:
            start.hparams[name].string_value = value
    end = plugin_data_pb2.SessionEndInfo(status="STATUS_SUCCESS", end_time_secs=now)
    infos = {
        metadata.SESSION_START_INFO_TAG: plugin_data_pb2.HParamsPluginData(session_start_info=start),
        metadata.SESSION_END_INFO_TAG: plugin_data_pb2.HParamsPluginData(session_end_info=end),
    }
    summaries = [
        (0, Summary(value=[Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(info), tensor=metadata.NULL_TENSOR)]))
        for tag, info in infos.items()
    ]
    summaries += [(step, _scalars({"evaluation/score": score})) for step, score in evaluations]
    summaries.append((evaluations[-1][0], _scalars({"final_score": final})))
    write_bytes(folder / OUTCOME, _header(now) + b"".join(_record(step, summary, now) for step, summary in summaries))


def append_scalars(path: Path, step: int, scalars: Mapping[str, float]) -> None:
    """Add scalars to a file of events, which is begun if need be."""
    now = time.time()
    header = b"" if path.exists() else _header(now)
    with path.open("ab") as file:
        file.write(header + _record(step, _scalars(scalars), now))


def _scalars(scalars: Mapping[str, float]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()])


def _header(wall_time: float) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    return _framed(Event(wall_time=wall_time, file_version="brain.Event:2"))


def _record(step: int, summary: Any, wall_time: float) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    return _framed(Event(wall_time=wall_time, step=step, summary=summary))


def _framed(event: Any) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()
