"""The licences of everything that is installed with ohem, as each package states its own; nothing is asked of a network.

    python benchmarks/licences.py [--extras fast,demo]

Exits with 1 where a package states none, or one that is neither permissive nor weakly reciprocal.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

GOOD = re.compile(
    r"\b(MIT|BSD|Apache|ISC|PSF|Python|HPND|CMU|Zlib|MPL|Unlicense|CC0|0BSD|Public Domain)\b|Zero-Clause", re.I
)
PROPRIETARY = re.compile(r"^(nvidia|cuda|triton)")
"""What torch's build for GPUs brings with it, under NVIDIA's terms; its build for CPUs has none of it."""


def required(name: str, extras: Sequence[str], seen: dict[str, Distribution]) -> Iterator[str]:
    """Names of all that a package needs here, itself first; missing ones are those of other platforms."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in seen:
        return
    try:
        seen[key] = found = distribution(name)
    except PackageNotFoundError:
        return
    yield key
    for line in found.requires or ():
        need = Requirement(line)
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield from required(need.name, tuple(need.extras), seen)


def licence(found: Distribution) -> str:
    """What a package says of itself: an SPDX expression, a classifier, or the first line of its field."""
    metadata = found.metadata
    classified = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier", ()) if c.startswith("License ::")]
    stated = (metadata.get("License") or "").strip().splitlines()
    return metadata.get("License-Expression") or ", ".join(classified) or (stated[0][:60] if stated else "none stated")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [extra for extra in distribution("ohem").metadata.get_all("Provides-Extra", ()) if extra != "dev"]
    parser.add_argument("--extras", default=",".join(every), help="of ohem; all but dev when omitted")
    options = parser.parse_args(arguments)
    seen: dict[str, Distribution] = {}
    strange = 0
    for name in sorted(required("ohem", options.extras.split(","), seen)):
        stated = licence(seen[name])
        known = GOOD.search(stated) or PROPRIETARY.match(name)
        strange += not known
        print(f"{'' if known else '? '}{name} {seen[name].version}: {stated}")
    print(f"{len(seen)} packages, {strange} to be looked at")
    return int(strange > 0)


if __name__ == "__main__":
    sys.exit(main())
