"""One file per quantiser. `models.quantisers.registry` finds every file in this folder."""
