"""The tables of a run, beside the ledger."""

TABLES = """
    CREATE TABLE effect (
        number bigserial PRIMARY KEY,
        key text NOT NULL,      -- not unique, so that a job whose effect happens twice is seen
        job_id text NOT NULL,
        task text NOT NULL,
        at timestamptz NOT NULL DEFAULT clock_timestamp()
    );
    CREATE INDEX effect_key ON effect (key);
    CREATE TABLE marker (
        transaction text NOT NULL,
        keys text[] NOT NULL    -- of the jobs that the transaction has enqueued
    );
"""

ADD_EFFECT = "INSERT INTO effect (key, job_id, task) VALUES (:key, :job_id, :task)"
ADD_MARKER = "INSERT INTO marker (transaction, keys) VALUES (:transaction, :keys)"
