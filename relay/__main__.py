"""`python -m relay`: the operator's commands."""

import sys

try:
    from relay.operate.commands import main
except ModuleNotFoundError as missing:
    sys.exit(
        f"The package {missing.name} is not installed for this Python. `make run` prints the "
        'commands with a Python that has it; or see "The commands" in docs/operating.md.'
    )

main()
