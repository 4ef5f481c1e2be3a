import sys

from relex_ext.cli import main

sys.exit(main())
