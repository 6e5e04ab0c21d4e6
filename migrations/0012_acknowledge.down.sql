-- 0012_acknowledge: takes it back; what was delivered stays as it is.
SET LOCAL lock_timeout = '5s'; -- as on the way up
DROP TRIGGER note_loss ON gateway.events;
DROP FUNCTION gateway.note_loss();
DROP FUNCTION gateway.purge_deliveries(interval, integer, bigint);
DROP VIEW gateway.group_list;
DROP FUNCTION gateway.group_state(gateway.groups);
DROP FUNCTION gateway.result(bigint, text);
DROP FUNCTION gateway.release(text[], text[]);
DROP FUNCTION gateway.nack_many(text[], text[], interval[], text[]);
DROP FUNCTION gateway.nack(text, text, interval, text);
DROP FUNCTION gateway.nack_one(text, text, interval, text);
DROP FUNCTION gateway.lock_held(bigint, integer, text, text);
DROP FUNCTION gateway.ack_many(text[], text[], text[]);
DROP FUNCTION gateway.as_result(text);
DROP FUNCTION gateway.ack(text, text, json);
DROP FUNCTION gateway.ack_all(text[], text[], json[]);
DROP FUNCTION gateway.raise_code(integer, text);
DROP FUNCTION gateway.parse_delivery(text);
