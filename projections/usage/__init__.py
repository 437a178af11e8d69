"""The usage table, filled from raw Avro."""
