"""`python -m relay`: the operator's commands."""

from relay.operate.commands import main

main()
