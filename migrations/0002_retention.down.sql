DROP TABLE gateway.purges;
