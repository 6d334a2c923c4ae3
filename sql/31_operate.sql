-- What an operator does when a stream has stopped.

create function duplex.retry_peer(name text) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    update duplex.peer_registry p
       set state = 'waiting', reason = null, skip_next = false, state_changed_at = now()
     where p.name = retry_peer.name and p.state in ('stopped', 'gap');
    if not found then
        raise exception 'the stream of node "%" is not stopped', retry_peer.name
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'The view duplex.peers shows what state each stream is in.';
    end if;
    update duplex.apply_errors e
       set resolution = 'retried', resolved_at = now()
     where e.peer = retry_peer.name and e.resolution is null;
end
$$;
comment on function duplex.retry_peer(text) is
    'The cause is gone: the relay tries the change at which this peer''s stream stopped again, within seconds.';

create function duplex.skip_transaction(name text) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    update duplex.peer_registry p
       set state = 'waiting', reason = null, skip_next = true, state_changed_at = now()
     where p.name = skip_transaction.name and p.state = 'stopped';
    if not found then
        raise exception 'the stream of node "%" is not stopped at a transaction', skip_transaction.name
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'The view duplex.peers shows what state each stream is in.';
    end if;
end
$$;
comment on function duplex.skip_transaction(text) is
    'Leaves out the transaction at which this peer''s stream stopped, for good: this node will differ in what it changed.';

create function duplex.resync_peer(name text, next_offset bigint) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    origin text := (select 'duplex_' || d.oid || '_' || resync_peer.name
                      from pg_database d where d.datname = current_database());
begin
    if next_offset is null or next_offset < 0 then
        raise exception 'a Kafka offset is 0 or more' using errcode = 'invalid_parameter_value';
    end if;
    perform from duplex.peer_registry p
      where p.name = resync_peer.name and p.state in ('stopped', 'gap', 'waiting') for update;
    if not found then
        raise exception 'the stream of node "%" is not stopped', resync_peer.name
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Only a stream in state gap or stopped can be told to go on elsewhere.';
    end if;
    if exists (select from pg_replication_origin o where o.roname = origin) then
        perform pg_replication_origin_drop(origin);
    end if;
    perform pg_replication_origin_create(origin);
    if next_offset > 0 then
        perform pg_replication_origin_advance(origin, '0/0'::pg_lsn + next_offset);
    end if;
    update duplex.peer_registry p
       set state = 'waiting', reason = null, node_id = null, generation = 0, last_lsn = 0, last_xid = 0,
           skip_next = false, state_changed_at = now()
     where p.name = resync_peer.name;
end
$$;
comment on function duplex.resync_peer(text, bigint) is
    'After a gap, once the tables were made equal by hand: this peer''s stream goes on at that Kafka offset.';

create function duplex.apply_skip("offset" bigint) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    -- The same place as an applied transaction's: the progress of this session's replication origin.
    perform pg_replication_origin_xact_setup('0/0'::pg_lsn + ("offset" + 1), now());
    update duplex.peer_registry p set skip_next = false where p.name = current_setting('duplex.origin');
    update duplex.apply_errors e
       set resolution = 'skipped', resolved_at = now()
     where e.peer = current_setting('duplex.origin') and e.resolution is null;
end
$$;
comment on function duplex.apply_skip(bigint) is
    'Relay, in a marked session: the transaction whose last record has this offset is left out, as an operator said.';
