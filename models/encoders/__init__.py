"""One file per sequence encoder. `models.registry` finds every file in this folder."""
