"""Peak memory of a training step, each form in a process of its own; and that OHEM's does not grow with R."""

from pathlib import Path

from subjects import FORMS
from timing import last_number, line

STEP = str(Path(__file__).with_name("subjects.py"))


def measure_memory(network: str) -> dict[str, float]:
    """GB of each form, and over the baseline's."""
    base, *others = FORMS[network]
    peaks = {form: last_number(STEP, [network, form]) for form in (base, *others)}
    found = {**peaks, **{f"{form} / {base}": peaks[form] / peaks[base] for form in others}}
    print(line(f"{network}, GB", found))
    return found


def measure_memory_growth() -> dict[str, float]:
    """GB of an OHEM step against R."""
    found = {str(r): last_number(STEP, ["vgg_cnn_m_1024", "OHEM", str(r)]) for r in (1000, 10_000)}
    print(line("vgg_cnn_m_1024, GB at R", found))
    return found
