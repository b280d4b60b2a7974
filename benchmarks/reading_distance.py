"""How much of the library a reader has to open to follow one run: functions entered, files, and lines of code.

    python benchmarks/reading_distance.py [--steps 4] [--list DDIM] [--json OUT]

A run of `--steps` network calls from a plain notebook: `NetworkDenoiser` around a network that returns what it is given,
on `VPSDE`, with the solver's own grid. Every function of scoresde that Python enters is counted once; the network is
not part of scoresde here. SLOC are lines of a function's body and signature without docstring, comments and blanks.
"step by hand" is one public `step` outside a run.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
from collections.abc import Callable
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
    """Lines with code of a function, its docstring left out."""
    lines, start = inspect.getsourcelines(code)
    tree = ast.parse(inspect.cleandoc("\n" + "".join(lines)) if lines[0][0] != " " else _dedented(lines))
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    docstring = function.body[0] if ast.get_docstring(function) is not None else None
    skipped = range(docstring.lineno, (docstring.end_lineno or 0) + 1) if docstring else range(0)
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in skipped
        for number, line in enumerate(lines, 1)
    )


def _dedented(lines: list[str]) -> str:
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "".join(line[indent:] if line[:indent].isspace() else line for line in lines)


def measures(codes: set[CodeType]) -> dict[str, int]:
    return {"functions": len(codes), "files": len({code.co_filename for code in codes}), "sloc": sum(map(sloc, codes))}


def cases(steps: int) -> dict[str, Callable[[], Any]]:
    denoiser = NetworkDenoiser(Same(), VPSDE(), Epsilon())
    x = torch.randn(2, 3, 8, 8)
    return {
        "DDIM": lambda: DDIM(steps=steps)(denoiser, x),
        "DPMSolverPP2M": lambda: DPMSolverPP2M(steps=steps)(denoiser, x),
        "DDIM().step by hand": lambda: by_hand(denoiser, x),
    }


def by_hand(denoiser: NetworkDenoiser, x: Tensor) -> Tensor:
    interval = scoresde.Interval.between(denoiser, torch.tensor(0.6), torch.tensor(0.5))
    return DDIM().step(denoiser, x, interval, scoresde.gaussian_noise(x), None)[0]


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
                print(f"  {Path(code.co_filename).relative_to(PACKAGE)}:{code.co_firstlineno} {code.co_qualname}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
