"""The log as TensorBoard scalars; needs the extra ``ohem[tensorboard]``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ohem.extras import need
from ohem.training.loop import Observer


def tensorboard_observer(folder: Path) -> Observer:
    """An observer that writes every number of every log record to TensorBoard files in ``folder``.

    Raises:
        OhemError: TensorBoard is not installed.
    """
    writer = need("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder))

    def observe(record: Mapping[str, Any]) -> None:
        if record["kind"] == "progress":
            return
        for name, value in record.items():
            parts = value.items() if isinstance(value, dict) else [("", value)]
            for part, number in parts:
                if name != "iteration" and isinstance(number, int | float) and not isinstance(number, bool):
                    tag = "/".join(filter(None, (record["kind"], name, part)))
                    writer.add_scalar(tag, number, record["iteration"])
        writer.flush()

    return observe
