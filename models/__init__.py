"""The workshop: event logs, training, evaluation and export. The only place where torch lives; it makes bundles."""
