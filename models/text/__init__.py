"""One file per text encoder. `models.text.registry` finds every file in this folder."""
