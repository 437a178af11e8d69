"""Bills from the tables: what is asked of ClickHouse, of many tenants together."""
