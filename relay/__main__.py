"""`python -m relay`: the operator's commands."""

import sys

try:
    from relay.operate.commands import main
except ModuleNotFoundError as missing:
    sys.exit(
        f"The package {missing.name} is not installed for this Python. `make run` installs it in "
        '.venv, and prints the path of that Python. Or see "The commands" in docs/operating.md.'
    )

main()
