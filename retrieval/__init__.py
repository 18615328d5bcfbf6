"""The core: items, histories, indexes, filters, recommenders. Arrays in, arrays out; synchronous and deterministic."""
