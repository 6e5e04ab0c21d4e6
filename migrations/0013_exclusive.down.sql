DROP FUNCTION gateway.recall(text, text);
DROP FUNCTION gateway.renew(text[], text[], interval);
