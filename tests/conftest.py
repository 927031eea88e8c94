"""What holds for every test."""

from __future__ import annotations

import signal

# A shell that starts something in the background lets it ignore Ctrl-C, and nohup a closed terminal; children would inherit
# that, and tests that send these signals would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
