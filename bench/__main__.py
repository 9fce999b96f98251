"""All benches, or one: `python -m bench [cost|crash|drain|memory|neighbours] [--quick]`."""

import argparse
import sys

from bench import cost, crash, drain, memory, neighbours

BENCHES = {
    "cost": cost.main,
    "crash": crash.main,
    "drain": drain.main,
    "memory": memory.main,
    "neighbours": neighbours.main,
}


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=BENCHES, help="only this one (default: all)")
    parser.add_argument("--quick", action="store_true", help="shorter, and rougher")
    arguments = parser.parse_args(argv)
    chosen = [arguments.name] if arguments.name else list(BENCHES)
    ended = [BENCHES[name](["--quick"] if arguments.quick else []) for name in chosen]
    return max(ended)


if __name__ == "__main__":
    sys.exit(main())
