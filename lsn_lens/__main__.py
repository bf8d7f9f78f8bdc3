"""`python -m lsn_lens`, the same as the command `lsn-lens`."""

import sys

from lsn_lens.command.program import main

if __name__ == "__main__":
    sys.exit(main())
