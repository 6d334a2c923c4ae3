-- What the relay calls to apply a peer's stream. All of it runs below permission checks, in C: the relay's role owns
-- nothing. Who may call it stands in 90_grants.sql.

create function duplex.relay_info(out node text, out node_id uuid, out extension_version text, out peers text[])
    returns setof record
    language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select n.name, n.node_id,
           (select e.extversion from pg_catalog.pg_extension e where e.extname = 'pg_duplex'),
           array(select p.name from duplex.peer_registry p order by p.name)
      from duplex.node n
$$;
comment on function duplex.relay_info() is 'Who this node and its peers are; no row before duplex.create_node.';

create function duplex.apply_open(peer text)
    returns table (next_offset bigint, generation bigint, last_lsn bigint, last_xid bigint, node_id uuid)
    language c strict volatile parallel unsafe
as 'MODULE_PATHNAME', 'apply_open_wrapper';
comment on function duplex.apply_open(text) is
    'Marks this session for good as replication from that peer, and says where its stream goes on.';

create procedure duplex.apply_batch(records bytea[], offsets bigint[])
    language c
as 'MODULE_PATHNAME', 'apply_batch_wrapper';
comment on procedure duplex.apply_batch(bytea[], bigint[]) is
    'Applies records of the peer, each transaction committed for itself together with its offset.';

create function duplex.apply_chunk(record bytea, "offset" bigint) returns void
    language c strict volatile parallel unsafe
as 'MODULE_PATHNAME', 'apply_chunk_wrapper';
comment on function duplex.apply_chunk(bytea, bigint) is
    'Applies one chunk of a transaction inside the caller''s; the last one lets the commit advance the offset.';

create function duplex.apply_position() returns bigint
    language c strict volatile parallel unsafe
as 'MODULE_PATHNAME', 'apply_position_wrapper';
comment on function duplex.apply_position() is 'The offset of the peer''s stream that this marked session takes next.';

create function duplex.report_peer(peer text, state text, reason text) returns void
    language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
    update duplex.peer_registry p
       set state = report_peer.state, reason = report_peer.reason, state_changed_at = now()
     where p.name = report_peer.peer
       and (p.state, p.reason) is distinct from (report_peer.state, report_peer.reason)
$$;
comment on function duplex.report_peer(text, text, text) is 'The relay says how applying a peer''s stream is going.';

create function duplex.report_error(
    peer text, "offset" bigint, sqlstate text, message text, detail text, hint text) returns void
    language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
    insert into duplex.apply_errors (peer, topic_offset, sqlstate, message, detail, hint)
    values (report_error.peer, report_error."offset", report_error.sqlstate, report_error.message,
            report_error.detail, report_error.hint)
$$;
comment on function duplex.report_error(text, bigint, text, text, text, text) is
    'The relay records an error that stopped a peer''s stream.';

revoke all on function duplex.relay_info() from public;
revoke all on function duplex.apply_open(text) from public;
revoke all on procedure duplex.apply_batch(bytea[], bigint[]) from public;
revoke all on function duplex.apply_chunk(bytea, bigint) from public;
revoke all on function duplex.apply_position() from public;
revoke all on function duplex.report_peer(text, text, text) from public;
revoke all on function duplex.report_error(text, bigint, text, text, text, text) from public;
