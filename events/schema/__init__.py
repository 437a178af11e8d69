"""A fact as bytes and back: the Avro schema derived from its class, the codec, the examples that must decode for ever."""
