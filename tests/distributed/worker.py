"""Program that torchrun starts: runs all checks on every process and writes the worst numbers, or the error, of each."""

from __future__ import annotations

import json
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import agent_checks
import expert_checks
import torch.distributed as dist
import trainer_checks


def main() -> None:
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    size, rank = dist.get_world_size(), dist.get_rank()
    results: dict[str, Any] = {}
    checks = [*expert_checks.checks(folder), *trainer_checks.checks(folder), *agent_checks.checks(folder)]
    for name, check in checks:
        try:
            own: Any = check()
        except Exception:
            own = traceback.format_exc()
        everyone: list[Any] = [None] * size
        dist.all_gather_object(everyone, own)
        errors = [found for found in everyone if isinstance(found, str)]
        results[name] = errors[0] if errors else {key: max(found.get(key, 0.0) for found in everyone) for key in own}
    if rank == 0:
        (folder / f"results_{size}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
