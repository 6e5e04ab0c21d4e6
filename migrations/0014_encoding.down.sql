-- 0014_encoding: takes it back.
DROP TRIGGER IF EXISTS check_encoding ON gateway.events;
DROP FUNCTION gateway.check_encoding();
