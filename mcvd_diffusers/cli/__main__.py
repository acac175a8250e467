"""`python -m mcvd_diffusers.cli`, which `accelerate launch -m` can start on many devices."""

import sys

from mcvd_diffusers.cli import main


if __name__ == "__main__":
    sys.exit(main())
