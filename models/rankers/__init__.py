"""One file per ranker: candidates in, one probability per task out."""
