"""One small file per family: its configuration file turned into a `Model`."""
