"""How much of the library a reader opens to follow one run: functions entered, files, and lines of code.

    python benchmarks/reading_distance.py [--steps 4] [--list DDIM] [--json OUT]

A run of `--steps` network calls from a plain notebook: `NetworkDenoiser` around a network that returns what it is
given, on `VPSDE`, with the solver's own grid. Every function of scoresde that Python enters is counted once; the
network is not part of scoresde here, and making the objects is not part of the run. SLOC are lines of a function's
signature and body, without decorators, docstring, comments and blanks. "by hand" is one public step outside a run.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn

import scoresde
from scoresde import DDIM, VPSDE, DPMSolverPP2M, Epsilon, NetworkDenoiser

PACKAGE = Path(scoresde.__file__).parent


class Same(nn.Module):
    """The least network."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return x


def entered(run: Callable[[], Any]) -> set[CodeType]:
    """Code objects of scoresde that a call enters; comprehensions and lambdas belong to the function around them."""
    seen: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)) and not code.co_name.startswith("<"):
            seen.add(code)

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return seen


def sloc(code: CodeType) -> int:
    """Lines with code of a function: signature and body, without decorators and docstring."""
    lines, _ = inspect.getsourcelines(code)
    (function,) = ast.parse(textwrap.dedent("".join(lines))).body
    assert isinstance(function, ast.FunctionDef)
    docstring = function.body[0] if ast.get_docstring(function) is not None else None
    skipped = range(docstring.lineno, (docstring.end_lineno or 0) + 1) if docstring else range(0)
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number >= function.lineno and number not in skipped
        for number, line in enumerate(lines, 1)
    )


def measures(codes: set[CodeType]) -> dict[str, int]:
    return {"functions": len(codes), "files": len({code.co_filename for code in codes}), "sloc": sum(map(sloc, codes))}


def cases(steps: int) -> dict[str, Callable[[], Any]]:
    denoiser = NetworkDenoiser(Same(), VPSDE(), Epsilon())
    x, ddim = torch.randn(2, 3, 8, 8), DDIM(steps=steps)
    return {
        "DDIM": partial(ddim, denoiser, x),
        "DPMSolverPP2M": partial(DPMSolverPP2M(steps=steps), denoiser, x),
        "DDIM().step by hand": partial(by_hand, ddim, denoiser, x),
    }


def by_hand(solver: DDIM, denoiser: NetworkDenoiser, x: Tensor) -> Tensor:
    interval = scoresde.Interval.between(denoiser, torch.tensor(0.6), torch.tensor(0.5))
    return solver.step(denoiser, x, interval, None, None)[0]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--list", metavar="CASE", help="name the functions of one case")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args(argv)

    results = {}
    print(f"{'':24}{'functions':>10}{'files':>8}{'SLOC':>8}")
    for name, run in cases(args.steps).items():
        run()  # lazy imports are not part of the reading
        codes = entered(run)
        results[name] = row = measures(codes)
        print(f"{name:24}{row['functions']:10}{row['files']:8}{row['sloc']:8}")
        if args.list == name:
            for code in sorted(codes, key=lambda code: (code.co_filename, code.co_firstlineno)):
                place = f"{Path(code.co_filename).relative_to(PACKAGE)}:{code.co_firstlineno}"
                print(f"  {place:34}{code.co_name:20}{sloc(code):4}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
