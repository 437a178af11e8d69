"""The ClickHouse engine (chDB) behind the ClickHouse HTTP protocol, for one machine."""
