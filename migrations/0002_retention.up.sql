CREATE TABLE gateway.purges (seq bigint PRIMARY KEY, purged_at timestamptz NOT NULL DEFAULT clock_timestamp());
