"""Makes calls of all kinds, announcing each before it is made: where the process dies, the last line says of what."""

from __future__ import annotations

import argparse
import functools
from collections import Counter

from proof.badcalls import KINDS, bad_calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calls", type=int, help="how many")
    parser.add_argument("--seed", default="0", help="the same calls for the same seed")
    arguments = parser.parse_args()
    done = Counter[str]()
    announce = functools.partial(print, flush=True)
    bad_calls(list(KINDS.values()), announce, done, arguments.calls, f"all kinds, {arguments.seed}")
    print(f"refused {sum(done.values())} calls of {len(done)} kinds")


if __name__ == "__main__":
    main()
