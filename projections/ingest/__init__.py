"""From Kafka to ClickHouse: Faust in chunks, sinks, and the position that each table has reached."""
