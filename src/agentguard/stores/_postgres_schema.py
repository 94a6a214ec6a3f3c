"""The tables and functions of a PostgreSQL store, as numbered migrations.

What must stay true: a migration that was released is never edited, only followed by another; all pending ones run in
one transaction under an advisory lock, so that two processes never migrate at once and a crash leaves the old schema
or the new one; a schema that a newer version wrote, or another program, is refused and not touched. The names of
functions end with the number of the migration that made them: an older process fails to find a function that a newer
migration has dropped, and is refused instead of misunderstanding it.

**Order of locks**, in every transaction, so that no two can wait for each other in a circle: runs by id; the gates
(advisory locks) and rows of calls by key; the gate of a tool; accounts by key; holds by key; approvals by id; the gate
of the switches. ``{s}`` stands for the quoted schema, ``{seed}`` for a number made of its name, so that the gates of
two schemas of one database have nothing to do with each other.

**When commits are synced.** The procedures ``begin_1`` and ``finish_1`` commit their change without waiting for the
disk, which frees the accounts for others at once, and then end with a commit that does wait. The log is written in order, so that wait
covers their change and whatever they have seen of others; an answer is given only after it. So callers that share an
account share the syncs of the disk as well, instead of queueing for one each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from typing import Any, Final, TypeAlias

from agentguard.errors import StoreUnavailable

Statement: TypeAlias = tuple[str, tuple[Any, ...]]
Rows: TypeAlias = list[tuple[Any, ...]]

RUN_COLUMNS: Final = (
    "opened, to_json(lineage)::text, status, to_json(labels)::text, version, active, pending, paused_ns, paused_at, "
    "audit_seq, audit_head, last_call, repeats, ended_at, stop_reason, result"
)
"""The columns of a run as ``_row_text.run_row`` reads them."""

CALL_COLUMNS: Final = (
    "tenant, run_id, key, call_id, tool, status, fingerprint, fence, effect, lease_until, started_at, ended_at, "
    "outcome, approval_id"
)

_TABLES: Final = (
    """CREATE TABLE {s}.runs (
        n bigint GENERATED ALWAYS AS IDENTITY, tenant text COLLATE "C" NOT NULL, run_id text COLLATE "C" NOT NULL,
        agent text NOT NULL, "user" text, session text, started_at bigint NOT NULL, deadline_ns bigint,
        working_ns bigint, meters jsonb NOT NULL, opened text NOT NULL, lineage text[] NOT NULL,
        status text NOT NULL, labels text[] NOT NULL, version bigint NOT NULL, active bigint NOT NULL,
        pending bigint NOT NULL, paused_ns bigint NOT NULL, paused_at bigint, audit_seq bigint NOT NULL,
        audit_head text NOT NULL, last_call text NOT NULL, repeats bigint NOT NULL, ended_at bigint,
        stop_reason text, result text, PRIMARY KEY (tenant, run_id)) WITH (fillfactor = 60)""",
    "CREATE INDEX runs_by_start ON {s}.runs (started_at DESC, n DESC)",
    "CREATE INDEX runs_by_id ON {s}.runs (run_id)",
    """CREATE TABLE {s}.calls (
        n bigint GENERATED ALWAYS AS IDENTITY, tenant text COLLATE "C" NOT NULL, key text COLLATE "C" NOT NULL,
        run_id text COLLATE "C" NOT NULL, call_id text NOT NULL, tool text NOT NULL, status text NOT NULL,
        fingerprint text NOT NULL, fence bigint NOT NULL, effect text NOT NULL, lease_until bigint NOT NULL,
        started_at bigint NOT NULL, ended_at bigint, outcome text, approval_id text,
        PRIMARY KEY (tenant, key)) WITH (fillfactor = 80)""",
    "CREATE INDEX calls_by_run ON {s}.calls (tenant, run_id, n)",
    "CREATE INDEX calls_running ON {s}.calls (tenant, tool) WHERE status = 'running'",
    """CREATE TABLE {s}.accounts (
        key text COLLATE "C" PRIMARY KEY, used jsonb NOT NULL DEFAULT '{{}}', held jsonb NOT NULL DEFAULT '{{}}',
        warned jsonb NOT NULL DEFAULT '[]') WITH (fillfactor = 30)""",
    """CREATE TABLE {s}.holds (
        key text COLLATE "C" PRIMARY KEY, accounts text[] NOT NULL, amounts text NOT NULL,
        lease_until bigint NOT NULL)""",
    "CREATE INDEX holds_by_lease ON {s}.holds (lease_until)",
    """CREATE TABLE {s}.approvals (
        n bigint GENERATED ALWAYS AS IDENTITY, id text COLLATE "C" PRIMARY KEY, tenant text COLLATE "C" NOT NULL,
        run_id text COLLATE "C" NOT NULL, tool text NOT NULL, status text NOT NULL, request text NOT NULL)""",
    "CREATE INDEX approvals_by_run ON {s}.approvals (tenant, run_id)",
    "CREATE INDEX approvals_by_status ON {s}.approvals (status)",
    """CREATE TABLE {s}.grants (
        tenant text COLLATE "C" NOT NULL, digest text COLLATE "C" NOT NULL, id text NOT NULL,
        expires_at bigint NOT NULL, PRIMARY KEY (tenant, digest))""",
    """CREATE TABLE {s}.switches (
        n bigint GENERATED ALWAYS AS IDENTITY, scope text NOT NULL, tenant text COLLATE "C" NOT NULL,
        value text NOT NULL, reason text NOT NULL, by text NOT NULL, at bigint NOT NULL,
        PRIMARY KEY (tenant, scope, value))""",
    """CREATE TABLE {s}.records (
        tenant text COLLATE "C" NOT NULL, run_id text COLLATE "C" NOT NULL, seq bigint NOT NULL, line bytea NOT NULL,
        hash text NOT NULL, salt text NOT NULL, body bytea, PRIMARY KEY (tenant, run_id, seq))""",
    """CREATE TABLE {s}.states (
        tenant text COLLATE "C" NOT NULL, run_id text COLLATE "C" NOT NULL, key text COLLATE "C" NOT NULL,
        value text NOT NULL, version bigint NOT NULL, by text NOT NULL, at bigint NOT NULL,
        PRIMARY KEY (tenant, run_id, key))""",
)

_NOW: Final = """CREATE FUNCTION {s}.now_1(p_now bigint) RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(p_now, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint * 1000) $$"""

_ACCOUNT: Final = """CREATE FUNCTION {s}.account_1(p_account text, p_per text, p_now bigint) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN p_per IS NULL THEN p_account ELSE p_account || '@' || to_char(
        to_timestamp(p_now / 1000000000) AT TIME ZONE 'UTC',
        CASE p_per WHEN 'minute' THEN 'YYYY-MM-DD"T"HH24:MI' WHEN 'hour' THEN 'YYYY-MM-DD"T"HH24'
                   WHEN 'day' THEN 'YYYY-MM-DD' WHEN 'month' THEN 'YYYY-MM' END) END $$"""
"""The same as ``ledger.account_key``."""

_TAKE_ACCOUNTS: Final = """CREATE FUNCTION {s}.take_accounts_1(p_keys text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_key text;
BEGIN
    FOR v_key IN SELECT DISTINCT k COLLATE "C" AS k FROM unnest(p_keys) k ORDER BY 1 LOOP
        PERFORM 1 FROM {s}.accounts WHERE key = v_key FOR UPDATE;
        IF NOT FOUND THEN
            INSERT INTO {s}.accounts (key) VALUES (v_key) ON CONFLICT (key) DO NOTHING;
            PERFORM 1 FROM {s}.accounts WHERE key = v_key FOR UPDATE;
        END IF;
    END LOOP;
END $$"""

_BEGIN: Final = """CREATE PROCEDURE {s}.begin_1(
    p_now bigint, p_tenant text, p_run text, p_agent text, p_user text, p_key text, p_call text, p_tool text,
    p_effect text, p_fingerprint text, p_version bigint, p_meters jsonb, p_amounts jsonb, p_pairs text,
    p_lease bigint, p_concurrency bigint, p_repeats bigint, p_hold text,
    p_pre text, p_mid text, p_post text, p_body bytea, p_salt text,
    OUT o_now bigint, OUT o_seq bigint, OUT o_prev text, OUT o_hash text, OUT o_deadline bigint)
LANGUAGE plpgsql AS $$
DECLARE
    r record;
    a record;
    v_now bigint;
    v_end bigint;
    v_keys text[];
    v_by jsonb;
    v_key text;
    v_held jsonb[] := '{{}}';
    v_line bytea;
BEGIN
    SELECT status, version, paused_ns, paused_at, started_at, deadline_ns, working_ns, audit_seq, audit_head,
           last_call, repeats, lineage
      INTO r FROM {s}.runs WHERE tenant = p_tenant AND run_id = p_run FOR UPDATE;
    IF NOT FOUND OR r.status <> 'running' OR r.paused_at IS NOT NULL OR r.version <> p_version OR r.audit_seq < 1
       OR (p_fingerprint <> '' AND r.last_call = p_fingerprint AND r.repeats >= p_repeats) THEN
        RETURN;
    END IF;
    IF cardinality(r.lineage) > 1 AND EXISTS (
            SELECT 1 FROM {s}.runs
             WHERE tenant = p_tenant AND run_id = ANY (r.lineage[2:]) AND status IN ('failed', 'stopped')) THEN
        RETURN;
    END IF;
    v_now := {s}.now_1(p_now);
    v_end := least(r.deadline_ns, r.started_at + r.working_ns + r.paused_ns);
    IF v_now >= v_end THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended(p_hold, {seed}));
    IF EXISTS (SELECT 1 FROM {s}.calls WHERE tenant = p_tenant AND key = p_key) THEN
        RETURN;
    END IF;
    IF p_concurrency IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(hashtextextended(p_tenant || ' ' || p_tool, {seed} + 1));
        IF (SELECT count(*) FROM {s}.calls WHERE tenant = p_tenant AND tool = p_tool AND status = 'running'
                AND lease_until > v_now) >= p_concurrency THEN
            RETURN;
        END IF;
    END IF;
    IF p_mid IS NOT NULL THEN
        v_line := convert_to('{{"at":"' || v_now || p_pre || r.audit_head || p_mid || (r.audit_seq + 1) || p_post, 'UTF8');
        IF octet_length(v_line) > 65535 THEN
            RETURN;
        END IF;
    END IF;
    SELECT coalesce(array_agg(k ORDER BY k), '{{}}'), jsonb_object_agg(k, m) INTO v_keys, v_by
      FROM (SELECT {s}.account_1(m->>'a', m->>'p', v_now) COLLATE "C" AS k, m FROM jsonb_array_elements(p_meters) m) x;
    FOREACH v_key IN ARRAY v_keys LOOP
        SELECT used, held, warned INTO a FROM {s}.accounts WHERE key = v_key FOR UPDATE;
        IF NOT FOUND THEN
            INSERT INTO {s}.accounts (key) VALUES (v_key) ON CONFLICT (key) DO NOTHING;
            SELECT used, held, warned INTO a FROM {s}.accounts WHERE key = v_key FOR UPDATE;
        END IF;
        IF EXISTS (
            SELECT 1 FROM jsonb_each_text(v_by->v_key->'l') l(d, n)
             WHERE CASE WHEN p_amounts ? d THEN coalesce((a.used->>d)::numeric, 0) + coalesce((a.held->>d)::numeric, 0)
                                                + (p_amounts->>d)::numeric > n::numeric
                        ELSE coalesce((a.used->>d)::numeric, 0) > n::numeric AND d NOT LIKE 'tool:%' END)
        OR EXISTS (
            SELECT 1 FROM jsonb_each_text(v_by->v_key->'w') w(d, n)
             WHERE p_amounts ? d AND NOT a.warned ? d
               AND coalesce((a.used->>d)::numeric, 0) + coalesce((a.held->>d)::numeric, 0)
                   + (p_amounts->>d)::numeric >= n::numeric) THEN
            RETURN;
        END IF;
        v_held := v_held || (a.held || coalesce(
            (SELECT jsonb_object_agg(d, coalesce((a.held->>d)::numeric, 0) + n::numeric)
               FROM jsonb_each_text(p_amounts) x(d, n) WHERE n::numeric <> 0), '{{}}'));
    END LOOP;
    -- After every wait for a lock, so that a switch that was acknowledged meanwhile is seen.
    IF EXISTS (
        SELECT 1 FROM {s}.switches
         WHERE (tenant = '' AND scope = 'everything') OR (tenant = p_tenant AND scope = 'tenant')
            OR (tenant IN ('', p_tenant) AND ((scope = 'agent' AND value = p_agent)
                OR (scope = 'user' AND value = p_user) OR (scope = 'tool' AND value = p_tool)))
            OR (tenant = p_tenant AND scope = 'run' AND value = ANY (r.lineage))) THEN
        RETURN;
    END IF;
    FOR i IN 1 .. cardinality(v_keys) LOOP
        UPDATE {s}.accounts SET held = v_held[i] WHERE key = v_keys[i];
    END LOOP;
    INSERT INTO {s}.holds (key, accounts, amounts, lease_until)
    SELECT p_hold, coalesce(array_agg({s}.account_1(m->>'a', m->>'p', v_now) ORDER BY o), '{{}}'), p_pairs, v_now + p_lease
      FROM jsonb_array_elements(p_meters) WITH ORDINALITY x(m, o)
    ON CONFLICT (key) DO UPDATE
       SET accounts = excluded.accounts, amounts = excluded.amounts, lease_until = excluded.lease_until;
    INSERT INTO {s}.calls (tenant, run_id, key, call_id, tool, status, fingerprint, fence, effect, lease_until, started_at)
    VALUES (p_tenant, p_run, p_key, p_call, p_tool, 'running', p_fingerprint, 1, p_effect, v_now + p_lease, v_now);
    o_prev := r.audit_head;
    IF v_line IS NULL THEN
        o_seq := r.audit_seq;
        o_hash := r.audit_head;
    ELSE
        o_seq := r.audit_seq + 1;
        o_hash := encode(sha256(v_line), 'hex');
        INSERT INTO {s}.records (tenant, run_id, seq, line, hash, salt, body)
        VALUES (p_tenant, p_run, o_seq, v_line, o_hash, p_salt, p_body);
    END IF;
    UPDATE {s}.runs SET active = active + 1, audit_seq = o_seq, audit_head = o_hash,
           repeats = CASE WHEN p_repeats IS NULL OR p_fingerprint = '' THEN repeats
                          WHEN last_call = p_fingerprint THEN repeats + 1 ELSE 1 END,
           last_call = CASE WHEN p_repeats IS NULL OR p_fingerprint = '' THEN last_call ELSE p_fingerprint END
     WHERE tenant = p_tenant AND run_id = p_run;
    o_now := v_now;
    o_deadline := v_end;
    PERFORM set_config('synchronous_commit', 'off', true);
    COMMIT;
    PERFORM pg_logical_emit_message(true, 'agentguard', '');
END $$"""

_FINISH: Final = """CREATE PROCEDURE {s}.finish_1(
    p_now bigint, p_tenant text, p_run text, p_key text, p_fence bigint, p_status text, p_amounts jsonb, p_pairs text,
    p_outcome text, p_labels text[], p_hold text,
    p_pres text[], p_mid text, p_post text, p_bodies bytea[], p_salts text[],
    OUT o_now bigint, OUT o_seq bigint, OUT o_prev text, OUT o_hash text, OUT o_labels text[], OUT o_version bigint)
LANGUAGE plpgsql AS $$
DECLARE
    r record;
    c record;
    h record;
    a record;
    m jsonb;
    v_now bigint;
    v_same boolean;
    v_released jsonb;
    v_keys text[];
    v_key text;
    v_used jsonb[] := '{{}}';
    v_held jsonb[] := '{{}}';
    v_lines bytea[] := '{{}}';
    v_hashes text[] := '{{}}';
    v_head text;
BEGIN
    SELECT pending, version, labels, audit_seq, audit_head, meters
      INTO r FROM {s}.runs WHERE tenant = p_tenant AND run_id = p_run FOR UPDATE;
    IF NOT FOUND OR r.pending > 0 OR r.audit_seq < 1 OR NOT p_labels <@ r.labels THEN
        RETURN;
    END IF;
    v_now := {s}.now_1(p_now);
    SELECT fence, status INTO c FROM {s}.calls WHERE tenant = p_tenant AND key = p_key FOR UPDATE;
    IF NOT FOUND OR c.fence <> p_fence OR c.status <> 'running' THEN
        RETURN;
    END IF;
    v_head := r.audit_head;
    FOR i IN 1 .. cardinality(p_pres) LOOP
        v_lines[i] := convert_to('{{"at":"' || v_now || p_pres[i] || v_head || p_mid || (r.audit_seq + i) || p_post, 'UTF8');
        IF octet_length(v_lines[i]) > 65535 THEN
            RETURN;
        END IF;
        v_head := encode(sha256(v_lines[i]), 'hex');
        v_hashes[i] := v_head;
    END LOOP;
    -- Who changes a hold has locked its accounts before: read it, lock them, and see below whether it is still that.
    SELECT accounts, amounts INTO h FROM {s}.holds WHERE key = p_hold;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT coalesce(array_agg(DISTINCT k COLLATE "C" ORDER BY k COLLATE "C"), '{{}}') INTO v_keys FROM unnest(h.accounts) k;
    IF cardinality(v_keys) <> cardinality(h.accounts) THEN
        RETURN;
    END IF;
    v_same := h.amounts = p_pairs AND cardinality(h.accounts) = jsonb_array_length(r.meters);
    SELECT coalesce(jsonb_object_agg(d, n), '{{}}') INTO v_released
      FROM (SELECT e->>0 AS d, sum((e->>1)::numeric) AS n FROM jsonb_array_elements(h.amounts::jsonb) e GROUP BY 1) x;
    FOREACH v_key IN ARRAY v_keys LOOP
        SELECT used, held, warned INTO a FROM {s}.accounts WHERE key = v_key FOR UPDATE;
        IF NOT FOUND THEN
            RETURN;
        END IF;
        v_held := v_held || coalesce((
            SELECT jsonb_object_agg(d, n) FROM (
                SELECT d, n::numeric - coalesce((v_released->>d)::numeric, 0) AS n
                  FROM jsonb_each_text(a.held) x(d, n)) y WHERE n > 0), '{{}}');
        v_used := v_used || (a.used || coalesce((
            SELECT jsonb_object_agg(d, coalesce((a.used->>d)::numeric, 0) + n::numeric)
              FROM jsonb_each_text(p_amounts) x(d, n) WHERE n::numeric <> 0), '{{}}'));
        m := r.meters->(array_position(h.accounts, v_key) - 1);
        IF NOT v_same AND EXISTS (
            SELECT 1 FROM jsonb_object_keys(p_amounts) d
             WHERE (v_used[cardinality(v_used)]->>d)::numeric > (m->'l'->>d)::numeric
                OR (NOT a.warned ? d AND coalesce((v_used[cardinality(v_used)]->>d)::numeric, 0)
                    + coalesce((v_held[cardinality(v_held)]->>d)::numeric, 0) >= (m->'w'->>d)::numeric)) THEN
            RETURN;
        END IF;
    END LOOP;
    DELETE FROM {s}.holds WHERE key = p_hold AND accounts = h.accounts AND amounts = h.amounts;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    FOR i IN 1 .. cardinality(v_keys) LOOP
        UPDATE {s}.accounts SET held = v_held[i], used = v_used[i] WHERE key = v_keys[i];
    END LOOP;
    UPDATE {s}.calls SET status = p_status, ended_at = v_now, outcome = p_outcome WHERE tenant = p_tenant AND key = p_key;
    FOR i IN 1 .. cardinality(p_pres) LOOP
        INSERT INTO {s}.records (tenant, run_id, seq, line, hash, salt, body)
        VALUES (p_tenant, p_run, r.audit_seq + i, v_lines[i], v_hashes[i], p_salts[i], p_bodies[i]);
    END LOOP;
    o_seq := r.audit_seq + cardinality(p_pres);
    UPDATE {s}.runs SET active = greatest(active - 1, 0), audit_seq = o_seq, audit_head = v_head
     WHERE tenant = p_tenant AND run_id = p_run;
    o_now := v_now;
    o_prev := r.audit_head;
    o_hash := v_head;
    o_labels := r.labels;
    o_version := r.version;
    PERFORM set_config('synchronous_commit', 'off', true);
    COMMIT;
    PERFORM pg_logical_emit_message(true, 'agentguard', '');
END $$"""

_LOAD: Final = """CREATE FUNCTION {s}.load_1(p_now bigint, p jsonb, p_lock boolean) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
    v_tenant text := p->>'tenant';
    v_now bigint;
    v_runs text[] := ARRAY(SELECT jsonb_array_elements_text(p->'runs'));
    v_calls text[] := ARRAY(SELECT jsonb_array_elements_text(p->'calls') COLLATE "C" ORDER BY 1);
    v_accounts text[] := ARRAY(SELECT jsonb_array_elements_text(p->'accounts'));
    v_holds text[] := ARRAY(SELECT jsonb_array_elements_text(p->'holds'));
    v_approvals text[] := ARRAY(SELECT jsonb_array_elements_text(p->'approvals'));
    v_lapsed text[];
    v_names text[] := ARRAY(SELECT jsonb_array_elements_text(p->'names'));
    v_meters jsonb := coalesce(p->'meters', '[]');
    v_locked text[];
    v_root text;
    v_key text;
    v_found text[];
    v_running bigint;
BEGIN
    IF p ? 'find' THEN
        v_found := ARRAY(SELECT tenant FROM {s}.runs WHERE run_id = p->>'find' LIMIT 2);
        IF cardinality(v_found) = 1 THEN
            v_tenant := v_found[1];
            v_runs := v_runs || (p->>'find');
        END IF;
    END IF;
    IF p ? 'vote' THEN
        SELECT tenant, ARRAY[run_id] INTO v_key, v_found FROM {s}.approvals WHERE id = p->>'vote';
        IF v_key IS NOT NULL AND (v_tenant IS NULL OR v_tenant = v_key) THEN
            v_tenant := v_key;
            v_runs := v_runs || v_found;
        END IF;
        v_approvals := v_approvals || (p->>'vote');
    END IF;
    v_runs := v_runs || ARRAY(SELECT run_id FROM {s}.calls WHERE tenant = v_tenant AND key = ANY (v_calls));
    IF p ? 'lineage' THEN
        v_runs := v_runs || ARRAY(
            SELECT unnest(lineage) FROM {s}.runs WHERE tenant = v_tenant AND run_id = p->'runs'->>0);
    END IF;
    IF p_lock THEN
        PERFORM 1 FROM {s}.runs WHERE tenant = v_tenant AND run_id = ANY (v_runs) ORDER BY run_id FOR UPDATE;
    END IF;
    v_now := {s}.now_1(p_now);
    v_locked := v_runs;
    -- What is above is read as well, and locked only when something asks to write it.
    v_runs := v_runs || ARRAY(
        SELECT unnest(lineage) FROM {s}.runs WHERE tenant = v_tenant AND run_id = ANY (v_runs));
    IF p_lock THEN
        FOREACH v_key IN ARRAY v_calls LOOP
            PERFORM pg_advisory_xact_lock(hashtextextended(length(v_tenant) || ':' || v_tenant || v_key, {seed}));
            PERFORM 1 FROM {s}.calls WHERE tenant = v_tenant AND key = v_key FOR UPDATE;
        END LOOP;
        IF EXISTS (SELECT 1 FROM {s}.calls WHERE tenant = v_tenant AND key = ANY (v_calls) AND run_id <> ALL (v_locked)) THEN
            RAISE EXCEPTION 'a call moved to another run' USING ERRCODE = '40001';
        END IF;
        IF p ? 'tool' THEN
            PERFORM pg_advisory_xact_lock(hashtextextended(v_tenant || ' ' || (p->>'tool'), {seed} + 1));
        END IF;
    END IF;
    IF p ? 'tool' THEN
        SELECT count(*) INTO v_running FROM {s}.calls
         WHERE tenant = v_tenant AND tool = p->>'tool' AND status = 'running' AND lease_until > v_now;
    END IF;
    v_approvals := v_approvals || ARRAY(
        SELECT approval_id FROM {s}.calls
         WHERE tenant = v_tenant AND key = ANY (v_calls) AND approval_id IS NOT NULL);
    IF p ? 'run_meters' THEN
        v_meters := v_meters || coalesce((
            SELECT meters FROM {s}.runs WHERE tenant = v_tenant AND run_id = p->'runs'->>0), '[]');
    END IF;
    v_accounts := v_accounts || ARRAY(
        SELECT {s}.account_1(m->>'a', m->>'p', v_now) FROM jsonb_array_elements(v_meters) m);
    IF p ? 'lapsed' THEN
        v_lapsed := ARRAY(
            SELECT key FROM {s}.holds WHERE lease_until <= v_now
             ORDER BY (accounts && v_accounts) DESC, lease_until, key LIMIT 1000);
        v_holds := v_holds || v_lapsed;
    END IF;
    v_accounts := v_accounts || ARRAY(SELECT unnest(accounts) FROM {s}.holds WHERE key = ANY (v_holds));
    IF p_lock THEN
        PERFORM {s}.take_accounts_1(v_accounts);
        PERFORM 1 FROM {s}.holds WHERE key = ANY (v_holds) ORDER BY key FOR UPDATE;
        IF EXISTS (SELECT 1 FROM {s}.holds WHERE key = ANY (v_holds) AND NOT accounts <@ v_accounts) THEN
            RAISE EXCEPTION 'a hold moved to another account' USING ERRCODE = '40001';
        END IF;
        PERFORM 1 FROM {s}.approvals WHERE id = ANY (v_approvals) ORDER BY id FOR UPDATE;
        IF p ? 'turning' THEN
            PERFORM pg_advisory_xact_lock({seed} + 2);
        END IF;
    END IF;
    SELECT lineage[cardinality(lineage)] INTO v_root FROM {s}.runs WHERE tenant = v_tenant AND run_id = p->'runs'->>0;
    v_root := coalesce(v_root, p->'runs'->>0);
    RETURN json_build_object(
        'now', v_now, 'tenant', v_tenant, 'running', v_running,
        'asked_runs', v_runs, 'locked', v_locked, 'asked_accounts', v_accounts, 'asked_holds', v_holds, 'asked_approvals', v_approvals,
        'runs', (SELECT json_agg(json_build_array(run_id, {run})) FROM {s}.runs
                  WHERE tenant = v_tenant AND run_id = ANY (v_runs)),
        'calls', (SELECT json_agg(json_build_array({call})) FROM {s}.calls
                   WHERE tenant = v_tenant AND key = ANY (v_calls)),
        'accounts', (SELECT json_agg(json_build_array(key, used::text, held::text, warned::text)) FROM {s}.accounts
                      WHERE key = ANY (v_accounts)),
        'holds', (SELECT json_agg(json_build_array(key, to_json(accounts)::text, amounts, lease_until)) FROM {s}.holds
                   WHERE key = ANY (v_holds)),
        'lapsed', v_lapsed,
        'approvals', (SELECT json_agg(json_build_array(id, request)) FROM {s}.approvals WHERE id = ANY (v_approvals)),
        'grants', (SELECT json_agg(json_build_array(id, tenant, digest, expires_at)) FROM {s}.grants
                    WHERE tenant = v_tenant AND digest IN (SELECT jsonb_array_elements_text(p->'grants'))),
        'switches', CASE WHEN p ? 'names' THEN (
            SELECT json_agg(json_build_array(scope, tenant, value, reason, by, at)) FROM {s}.switches
             WHERE tenant IN ('', v_tenant) AND (scope IN ('everything', 'tenant') OR value = ANY (v_names)
                OR value IN (SELECT unnest(lineage) FROM {s}.runs WHERE tenant = v_tenant AND run_id = ANY (v_runs)))) END,
        'states', (SELECT json_agg(json_build_array(tenant, run_id, key, value, version, by, at)) FROM {s}.states
                    WHERE tenant = v_tenant AND run_id = v_root
                      AND key IN (SELECT jsonb_array_elements_text(p->'states'))));
END $$"""

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        *_TABLES,
        _NOW,
        _ACCOUNT,
        _TAKE_ACCOUNTS,
        _BEGIN,
        _FINISH,
        _LOAD.replace("{run}", RUN_COLUMNS).replace("{call}", CALL_COLUMNS),
    ),
)
"""The statements of each migration; the schema's version is their number."""


def seed_of(schema: str) -> int:
    """The number that the gates of a schema begin with."""
    return int.from_bytes(hashlib.sha256(f"agentguard {schema}".encode()).digest()[:7]) * 4


def migrating(schema: str, where: str) -> Generator[list[Statement], list[Rows], None]:
    """Bring the tables of a schema up to date: yields batches of statements, is sent the rows of each.

    Raises:
        StoreUnavailable: The schema belongs to another program or to a newer version.
    """
    if (yield from looking(schema, where)) == len(MIGRATIONS):
        return
    # Somebody else may be at it: look again once the lock is ours.
    yield [("BEGIN", ()), ("SELECT pg_advisory_xact_lock($1)", (seed_of(schema) + 3,))]
    version = yield from looking(schema, where)
    quoted = f'"{schema}"'
    statements: list[Statement] = []
    if version is None:
        statements.append((f"CREATE SCHEMA {quoted}", ()))
    if not version:
        statements.append((f"CREATE TABLE {quoted}.meta (version integer NOT NULL)", ()))
        statements.append((f"INSERT INTO {quoted}.meta (version) VALUES (0)", ()))
    for migration in MIGRATIONS[version or 0 :]:
        statements += [(sql.format(s=quoted, seed=seed_of(schema)), ()) for sql in migration]
    statements.append((f"UPDATE {quoted}.meta SET version = $1", (len(MIGRATIONS),)))
    yield [*statements, ("COMMIT", ())]


def looking(schema: str, where: str) -> Generator[list[Statement], list[Rows], int | None]:
    """The version of a schema: 0 when it is empty, ``None`` when it does not exist.

    Raises:
        StoreUnavailable: The schema belongs to another program or to a newer version.
    """
    exists, filled, ours = (yield [(_LOOK, (schema,))])[0][0]
    if not filled:
        return 0 if exists else None
    found = (yield [(f'SELECT version FROM "{schema}".meta', ())])[0] if ours else []
    version = found[0][0] if len(found) == 1 else None
    if not isinstance(version, int):
        raise StoreUnavailable(
            f"The schema {schema} of {where} has tables of another program; nothing was changed. Give the store a "
            "schema of its own: PostgresStore(url, schema=...)."
        )
    if version > len(MIGRATIONS):
        raise StoreUnavailable(
            f"The schema {schema} of {where} has version {version}, written by a newer agentguard; this one knows "
            f"versions up to {len(MIGRATIONS)}. Nothing was changed. Upgrade agentguard."
        )
    return version


_LOOK: Final = """SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1),
    EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1),
    EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'version'
             WHERE n.nspname = $1 AND c.relname = 'meta' AND c.relkind = 'r')"""
