-- What a monitor looks at: failed jobs cheaply, and the tenants' mail servers without their passwords.

CREATE INDEX processing_jobs_failed ON processing_jobs (completed_at) WHERE status = 'failed';
CREATE INDEX email_sending_jobs_failed ON email_sending_jobs (completed_at) WHERE status = 'failed';

-- Where the mail of each tenant goes. Starttls as the analytics service reads it: any JSON value but false, null, 0 and the empty ones.
CREATE VIEW mail_servers AS
SELECT id AS tenant_id, is_active, email_config ->> 'server' AS server, email_config ->> 'port' AS port,
       coalesce(email_config -> 'starttls' NOT IN ('false', 'null', '0', '""', '[]', '{}'), false) AS starttls,
       coalesce(email_config ->> 'username', '') <> '' AS has_login
FROM tenant_config;

-- The tenants' mail passwords. Granted to nobody but its owner: who may read it can send mail in every tenant's name.
CREATE VIEW mail_logins AS
SELECT id AS tenant_id, email_config ->> 'username' AS username, email_config ->> 'password' AS password
FROM tenant_config WHERE is_active AND coalesce(email_config ->> 'username', '') <> '';
