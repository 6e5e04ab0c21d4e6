-- 0006_bell: a placeholder, until the migration of that name is merged. Changes nothing.
SELECT 1;
