"""The demo: a catalogue of real books, readers simulated from it, and a few named readers to try the service with."""
