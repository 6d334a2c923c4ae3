-- The whole permission model, on one page.
--
-- Applications need no right on schema duplex: capture writes at heap level, below permission checks.
-- Superusers (and whom they grant EXECUTE) administrate. The relay is a member of role duplex_relay, which is no
-- superuser and owns nothing: it can call these functions and look at these views.

do $$
begin
    if not exists (select from pg_catalog.pg_roles where rolname = 'duplex_relay') then
        create role duplex_relay nologin;
    end if;
end
$$;
comment on role duplex_relay is 'What a pg_duplex relay needs: grant it to the role that the relay logs in as.';

revoke all on all tables in schema duplex from public;
revoke all on all routines in schema duplex from public;
revoke all on schema duplex from public;

grant usage on schema duplex to duplex_relay;
grant select on duplex.node, duplex.tables, duplex.peers, duplex.status, duplex.registers_status, duplex.queue_status, duplex.apply_errors, duplex.parked,
    duplex.conflict_history, duplex.conflict_stats to duplex_relay;
grant execute on function
    duplex.drain_open(bigint),
    duplex.drain(integer, integer),
    duplex.drain_confirm(bigint, bigint, bigint),
    duplex.drain_remade(),
    duplex.relay_info(),
    duplex.apply_open(text),
    duplex.apply_chunk(bytea, bigint),
    duplex.apply_position(),
    duplex.apply_careful(),
    duplex.apply_failure(),
    duplex.apply_parked(),
    duplex.stream_orders(text, bigint),
    duplex.meet_kafka(text, text),
    duplex.drain_missing(bigint[], bigint[]),
    duplex.drain_promised(text[], bigint[], boolean),
    duplex.lacks(),
    duplex.next_offset(text),
    duplex.register_rows(oid),
    duplex.horizon(oid),
    duplex.time_of(bigint),
    duplex.apply_skip(bigint),
    duplex.compare_table(jsonb),
    duplex.described_columns(jsonb),
    duplex.policy_label(text, name[]),
    duplex.base_type(oid, integer),
    duplex.type_label(text, text, integer),
    duplex.report_peer(text, text, text),
    duplex.peer_state(text),
    duplex.report_error(text, bigint, text, text, text, text),
    duplex.maintain()
to duplex_relay;
grant execute on procedure duplex.apply_batch(bytea[], bigint[]) to duplex_relay;
