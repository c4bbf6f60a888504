"""``python -m services.faults``: break the running platform by hand, and heal it."""

import argparse
import asyncio
import sys
from pathlib import Path

from services.control import ControlError, ask
from services.faults import FAULTS, FaultError, find_fault

DEFAULT_ROOT = Path(".demo/platform")
"""Where `monitor demo` keeps its platform."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m services.faults", description="Break the running platform for real, and heal it.")
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help="the running platform's folder (default: %(default)s)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="say which faults there are")
    for verb, text in (("provoke", "break it"), ("heal", "mend it")):
        verbs.add_parser(verb, help=text).add_argument("name", metavar="NAME")
    options = parser.parse_args()
    if options.verb == "list":
        print("\n".join(f"{fault.name:24}{fault.incident}  {fault.help}" for fault in FAULTS))
        return
    try:
        find_fault(options.name)
        print(asyncio.run(ask(options.root, options.verb, options.name)))
    except (FaultError, ControlError) as exc:
        sys.exit(f"faults: {exc}")


if __name__ == "__main__":
    main()
