"""`python -m stress`: runs the parts, each in a process of its own, and reports what was tried and what failed."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from .parts import PARTS
from .report import Outcome, save, table

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Exit code 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m stress", description=__doc__)
    about = "; ".join(f"{name}: {part.about}" for name, part in PARTS.items())
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all by default. {about}")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many cases (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other cases (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/stress.json"), help="the report (default: %(default)s)")
    parser.add_argument("--items", help=argparse.SUPPRESS)  # this process is one of those that run a part
    options = parser.parse_args()
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown or options.scale <= 0:
        parser.error(f"PART must be among {', '.join(PARTS)}" if unknown else "--scale must be positive")
    if options.items:
        return _work(options.parts[0], options.items.split(","), options.scale, options.seed)
    outcomes: list[Outcome] = []
    for name in options.parts or PARTS:
        for outcome in _part(name, options.scale, options.seed):
            outcomes.append(outcome)
            print(f"{outcome.part}, {outcome.name}: {outcome.cases} cases, {outcome.failed} failed", flush=True)
            for text in outcome.failures:
                print(f"  {text}", flush=True)
            save(options.out, outcomes, options.seed)
    print(f"\n{table(outcomes)}\n\nThe report is {options.out}")
    return int(any(o.failed for o in outcomes))


def _work(part: str, items: list[str], scale: float, seed: int) -> int:
    for item in items:
        print(json.dumps(asdict(PARTS[part].run(item, scale, seed))), flush=True)
    return 0


def _part(name: str, scale: float, seed: int) -> Iterator[Outcome]:
    """The outcomes of a part; an item that kills its process is a failure, and the others go on in a new one."""
    part, environment = PARTS[name], dict(os.environ)
    if part.sanitized:
        environment, why = _sanitized_environment()
        if why:
            yield Outcome(name, "not run", skipped=why)
            return
    items = list(part.items())
    while items:
        arguments = [name, "--items", ",".join(items), "--scale", str(scale), "--seed", str(seed)]
        command = [sys.executable, "-m", "stress", *arguments]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None, "a pipe was asked for"
        for line in process.stdout:
            if line.startswith("{"):
                yield Outcome(**json.loads(line))
                items.pop(0)
        code = process.wait()
        if items:
            failed = Outcome(name, items.pop(0), cases=1)
            failed.fail(f"its process ended with {code}")
            yield failed


def _sanitized_environment() -> tuple[dict[str, str], str]:
    """What the sanitized library needs, after building it; or why it cannot be had."""
    from build_support import sanitized
    from build_support.native import BuildError

    if not sanitized.runtime():
        return {}, "no sanitizer runtime (GCC on Linux has one)"
    try:
        sanitized.build()
    except BuildError as error:
        return {}, f"no sanitized build: {error}"
    return sanitized.environment(), ""


if __name__ == "__main__":
    raise SystemExit(main())
