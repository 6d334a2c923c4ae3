-- What the relay calls to apply a peer's stream. All of it runs below permission checks, in C: the relay's role owns
-- nothing. Who may call it stands in 90_grants.sql.

create function duplex.relay_info(
    out node text, out node_id uuid, out extension_version text, out peers text[], out paused text[])
    returns setof record
    language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select n.name, n.node_id,
           (select e.extversion from pg_catalog.pg_extension e where e.extname = 'pg_duplex'),
           array(select p.name from duplex.peer_registry p order by p.name),
           array(select p.name from duplex.peer_registry p where p.paused_at is not null order by p.name)
      from duplex.node n
$$;
comment on function duplex.relay_info() is
    'Who this node and its peers are, and whose streams an operator holds; no row before duplex.create_node.';

create function duplex.apply_open(peer text)
    returns table (next_offset bigint, generation bigint, hello_offset bigint, node_id uuid)
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

create function duplex.apply_careful() returns void
    language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'apply_careful_wrapper';
comment on function duplex.apply_careful() is
    'In a marked session: from now on each change in a subtransaction, until many transactions have gone well, to find the one that fails.';

create function duplex.apply_failure()
    returns table (error_id bigint, "offset" bigint, "ordinal" integer, operation text, table_name text)
    language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'apply_failure_wrapper';
comment on function duplex.apply_failure() is
    'In a marked session, after an error: records the very change that failed in duplex.apply_errors; no row if it is not known.';

create function duplex.apply_parked() returns boolean
    language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'apply_parked_wrapper';
comment on function duplex.apply_parked() is
    'In a marked session: tries one parked change that is due. True if it is applied, false if it failed again, null if none is due.';

create function duplex.report_peer(peer text, state text, reason text) returns void
    language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
    update duplex.peer_registry p
       set state = report_peer.state, reason = report_peer.reason, state_changed_at = now()
     where p.name = report_peer.peer
       and (p.state, p.reason) is distinct from (report_peer.state, report_peer.reason);
    update duplex.node n
       set replay_stopped = s.reason
      from (select case when report_peer.state = 'stopped' then report_peer.reason end) s (reason)
     where n.name = report_peer.peer and n.replay_stopped is distinct from s.reason
$$;
comment on function duplex.report_peer(text, text, text) is
    'The relay says how applying a peer''s stream is going, or this node''s own, of which a promoted server may lack something.';

create function duplex.peer_state(peer text) returns text
    language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select p.state from duplex.peers p where p.name = peer_state.peer
    union all
    select case when n.replay_stopped is null then 'waiting' else 'stopped' end
      from duplex.node n where n.name = peer_state.peer
$$;
comment on function duplex.peer_state(text) is
    'Relay: the state of a stream, for one that waits until a person sets it back to waiting; null if there is none.';

create function duplex.report_error(
    peer text, "offset" bigint, sqlstate text, message text, detail text, hint text) returns void
    language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
    insert into duplex.apply_errors (peer, topic_offset, sqlstate, message, detail, hint)
    select report_error.peer, report_error."offset", report_error.sqlstate, report_error.message,
           report_error.detail, report_error.hint
     where not exists (select from duplex.apply_errors e
                        where e.peer = report_error.peer and e.topic_offset = report_error."offset"
                          and e.message = report_error.message and e.resolution is null)
$$;
comment on function duplex.report_error(text, bigint, text, text, text, text) is
    'The relay records an error that stopped a peer''s stream and is not one change''s.';

create function duplex.stream_orders(peer text, next_offset bigint, out skip_next boolean, out careful boolean)
    language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select coalesce((select p.skip_next from duplex.peer_registry p where p.name = stream_orders.peer),
                    (select n.replay_skip_next from duplex.node n where n.name = stream_orders.peer), false),
           exists (select from duplex.apply_errors e
                    where e.peer = stream_orders.peer and e.topic_offset >= stream_orders.next_offset
                      and (e.resolution is null or e.resolution = 'change skipped'))
$$;
comment on function duplex.stream_orders(text, bigint) is
    'Relay: whether an operator said to leave out the next transaction, and whether it has failed before.';

create function duplex.meet_kafka(cluster text, peer text default null) returns text
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    known text;
begin
    if meet_kafka.peer is null then
        update duplex.node n set kafka_cluster = meet_kafka.cluster where n.kafka_cluster is null;
        known := (select n.kafka_cluster from duplex.node n);
    else
        update duplex.peer_registry p set kafka_cluster = meet_kafka.cluster
         where p.name = meet_kafka.peer and (p.kafka_cluster is null or duplex.next_offset(p.name) = 0);
        known := (select p.kafka_cluster from duplex.peer_registry p where p.name = meet_kafka.peer);
    end if;
    return known;
end
$$;
comment on function duplex.meet_kafka(text, text) is
    'Relay: the Kafka cluster known so far for the own stream or for a peer''s; the first one met is kept.';

revoke all on function duplex.relay_info() from public;
revoke all on function duplex.apply_open(text) from public;
revoke all on procedure duplex.apply_batch(bytea[], bigint[]) from public;
revoke all on function duplex.apply_chunk(bytea, bigint) from public;
revoke all on function duplex.apply_position() from public;
revoke all on function duplex.report_peer(text, text, text) from public;
revoke all on function duplex.peer_state(text) from public;
revoke all on function duplex.report_error(text, bigint, text, text, text, text) from public;
revoke all on function duplex.apply_careful() from public;
revoke all on function duplex.apply_failure() from public;
revoke all on function duplex.apply_parked() from public;
revoke all on function duplex.stream_orders(text, bigint) from public;
revoke all on function duplex.meet_kafka(text, text) from public;
