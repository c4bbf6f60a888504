-- The tables of the runbook, by its own names.

CREATE TABLE tenant_config (
    id           text PRIMARY KEY,
    name         text NOT NULL,
    is_active    boolean NOT NULL DEFAULT true,
    -- {"server", "port", "from", "username"?, "password"?, "starttls"?}
    email_config jsonb NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE processing_jobs (
    job_id        text PRIMARY KEY DEFAULT gen_random_uuid()::text,
    tenant_id     text NOT NULL REFERENCES tenant_config (id),
    status        text NOT NULL DEFAULT 'queued' CHECK (status IN ('queued', 'processing', 'completed', 'failed')),
    data_types    text[] NOT NULL,
    start_date    date NOT NULL,
    end_date      date NOT NULL CHECK (end_date >= start_date),
    created_at    timestamptz NOT NULL DEFAULT now(),
    started_at    timestamptz,
    completed_at  timestamptz,
    error_message text,
    -- Moves with progress only, never by a timer: a hung job's heartbeat ages.
    heartbeat_at  timestamptz,
    lease_token   uuid,
    lease_until   timestamptz,
    worker        text,
    rows_ingested bigint NOT NULL DEFAULT 0
);
CREATE INDEX processing_jobs_open ON processing_jobs (status, created_at) WHERE status IN ('queued', 'processing');
CREATE INDEX processing_jobs_created_at ON processing_jobs (created_at);

CREATE TABLE email_sending_jobs (
    job_id        text PRIMARY KEY DEFAULT gen_random_uuid()::text,
    tenant_id     text NOT NULL REFERENCES tenant_config (id),
    status        text NOT NULL DEFAULT 'queued' CHECK (status IN ('queued', 'processing', 'completed', 'failed')),
    recipients    text[] NOT NULL,
    subject       text NOT NULL,
    report        text NOT NULL,
    start_date    date NOT NULL,
    end_date      date NOT NULL,
    total_emails  integer NOT NULL,
    emails_sent   integer NOT NULL DEFAULT 0,
    emails_failed integer NOT NULL DEFAULT 0,
    created_at    timestamptz NOT NULL DEFAULT now(),
    started_at    timestamptz,
    completed_at  timestamptz,
    error_message text,
    heartbeat_at  timestamptz,
    lease_token   uuid,
    lease_until   timestamptz,
    worker        text
);
CREATE INDEX email_sending_jobs_open ON email_sending_jobs (status, created_at) WHERE status IN ('queued', 'processing');
CREATE INDEX email_sending_jobs_created_at ON email_sending_jobs (created_at);

CREATE TABLE email_send_history (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id          text NOT NULL REFERENCES email_sending_jobs (job_id) ON DELETE CASCADE,
    tenant_id       text NOT NULL,
    recipient       text NOT NULL,
    subject         text NOT NULL,
    status          text NOT NULL CHECK (status IN ('sending', 'sent', 'failed')),
    error_message   text,
    -- The time of the last attempt, whether it succeeded or not.
    sent_at         timestamptz NOT NULL DEFAULT now(),
    idempotency_key text NOT NULL UNIQUE
);
CREATE INDEX email_send_history_job_id ON email_send_history (job_id);
CREATE INDEX email_send_history_sent_at ON email_send_history (sent_at);

CREATE TABLE purchase (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id       text NOT NULL,
    event_date      date NOT NULL,
    event_timestamp timestamptz NOT NULL,
    user_id         text,
    session_id      text,
    page            text,
    value           numeric(14, 2),
    currency        text
);
CREATE INDEX purchase_tenant_id_event_date ON purchase (tenant_id, event_date);

CREATE TABLE add_to_cart (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id       text NOT NULL,
    event_date      date NOT NULL,
    event_timestamp timestamptz NOT NULL,
    user_id         text,
    session_id      text,
    page            text,
    value           numeric(14, 2),
    currency        text
);
CREATE INDEX add_to_cart_tenant_id_event_date ON add_to_cart (tenant_id, event_date);

CREATE TABLE page_view (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id       text NOT NULL,
    event_date      date NOT NULL,
    event_timestamp timestamptz NOT NULL,
    user_id         text,
    session_id      text,
    page            text
);
CREATE INDEX page_view_tenant_id_event_date ON page_view (tenant_id, event_date);
