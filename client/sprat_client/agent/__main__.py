"""`python -m sprat_client.agent` is `sprat-agent`."""

import sys

from sprat_client.agent import main

sys.exit(main())
