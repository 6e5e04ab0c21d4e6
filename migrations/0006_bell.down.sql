-- 0006_bell: a placeholder; takes back nothing.
SELECT 1;
