# SPDX-License-Identifier: Apache-2.0
"""Compares random calls with the oracles until the time is over."""

from __future__ import annotations

import argparse
import sys
import time

from anynpu.selftest import tiers
from random_calls.compare import OPERATORS, draw_call, failure
from random_calls.damage import damaged, fault
from random_calls.draw import Draw


def main() -> int:
    parser = argparse.ArgumentParser(prog="random_calls", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the first call; each further call has the next one")
    parser.add_argument("--operator", choices=sorted(OPERATORS), action="append", help="default: all")
    parser.add_argument("--tier", action="append", help="default: all that the machine has")
    parser.add_argument("--most", type=int, default=700, help="bounds all sizes")
    parser.add_argument(
        "--damage", action="store_true", help="change arguments, which only ValueErrors and such may answer"
    )
    options = parser.parse_args()
    names, levels = options.operator or sorted(OPERATORS), options.tier or tiers()
    end, seed, failures = time.monotonic() + options.seconds, options.seed, 0
    while time.monotonic() < end:
        name = names[seed % len(names)]
        args = draw_call(name, seed, options.most)
        if options.damage:
            args = damaged(Draw(seed), args)
            reason = next(filter(None, (fault(name, args, tier) for tier in levels)), None)
        else:
            reason = failure(name, args, levels)
        if reason is not None:
            failures += 1
            print(f"--operator {name} --seed {seed}: {reason}", flush=True)
        seed += 1
    print(f"{seed - options.seed} calls, {failures} of them failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
