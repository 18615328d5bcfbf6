"""The shell: sockets, session state, batching, time limits, metrics and configuration. No mathematics."""

__version__ = "0.1.0"
