"""The longer statements of `fedctl.store.write`; parameters carry the names of the records' fields."""

from __future__ import annotations

ADD_FLEET = """INSERT INTO fleet (id, uuid, root_key, operator_key, roster_serial, demo)
    VALUES (1, :uuid, :root_key, :operator_key, :roster_serial, :demo)"""
ADD_DEVICE = """INSERT INTO device VALUES (:name, :url, :host_key, :identity_key, :serial, :arch, :python,
        :agent_version, :state, :enrolled_at, :last_seen, :facts, :notes)
    ON CONFLICT (name) DO UPDATE SET url = excluded.url, host_key = excluded.host_key,
        identity_key = excluded.identity_key, serial = excluded.serial, arch = excluded.arch,
        python = excluded.python, agent_version = excluded.agent_version, state = excluded.state,
        enrolled_at = excluded.enrolled_at, last_seen = excluded.last_seen, facts = excluded.facts,
        notes = excluded.notes"""
SET_DEVICE_SEEN = """UPDATE device SET last_seen = :last_seen, agent_version = :agent_version, arch = :arch,
    python = :python, facts = :facts WHERE name = :name"""
PUT_DEPLOYMENT = "INSERT OR REPLACE INTO deployment VALUES (:device, :model, :version, :slot, :active, :at)"
ADD_VERSION = """INSERT INTO model_version VALUES (:model, :version, :sha256, :parent, :round_id, :state,
    :created_at, :metrics)"""
ADD_ROUND = """INSERT INTO round (uuid, model, base_version, plan, phase, attempt, started_at, deadline_at,
        ended_at, result_version, reason, metrics)
    VALUES (:uuid, :model, :base_version, :plan, :phase, :attempt, :started_at, :deadline_at,
        :ended_at, :result_version, :reason, :metrics)"""
SET_ROUND = """UPDATE round SET phase = :phase, reason = :reason, result_version = :result_version,
    ended_at = :ended_at, metrics = :metrics WHERE id = :id"""
SET_ROUND_DEVICE = """INSERT OR REPLACE INTO round_device VALUES (:round_id, :device, :role, :stage, :reason,
    :update_sha256, :norm, :examples)"""
# An upsert, not REPLACE: that would give the row a new rowid and so another place in the order.
PUT_TASK = """INSERT INTO task VALUES (:task_id, :round_id, :device, :kind, :attempt, :state, :reason,
        :bytes_up, :bytes_down, :cpu_ms, :wall_ms, :peak_rss_bytes, :metrics)
    ON CONFLICT (task_id) DO UPDATE SET state = excluded.state, reason = excluded.reason,
        bytes_up = excluded.bytes_up, bytes_down = excluded.bytes_down, cpu_ms = excluded.cpu_ms,
        wall_ms = excluded.wall_ms, peak_rss_bytes = excluded.peak_rss_bytes, metrics = excluded.metrics"""
ADD_EVENT = """INSERT INTO event VALUES (:seq, :at, :actor, :verb, :subject, :result, :detail, :op_id,
    :prev_hash, :hash)"""
