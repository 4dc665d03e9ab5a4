"""`python -m tllm_plugin` is the command `tllm`."""

import sys

from tllm_plugin.cli import main

sys.exit(main())
