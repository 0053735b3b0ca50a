"""`python -m kerasllm`."""

import sys

from kerasllm.cli import main

sys.exit(main())
