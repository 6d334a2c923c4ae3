-- What an operator does when a stream has stopped.

-- The stream of that name, locked, if it is in one of these states; else an error. The node's own stream counts, too, while
-- bringing back what a promoted server had lost of it stands still.
create function duplex.stopped_peer(name text, states text[]) returns void
    language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    perform from duplex.peer_registry p
      where p.name = stopped_peer.name and p.state = any (stopped_peer.states) for update;
    if found then
        return;
    end if;
    perform from duplex.node n where n.name = stopped_peer.name and n.replay_stopped is not null for update;
    if found and 'stopped' = any (stopped_peer.states) then
        return;
    end if;
    if not exists (select from duplex.peer_registry p where p.name = stopped_peer.name
                   union all select from duplex.node n where n.name = stopped_peer.name) then
        raise exception 'node "%" is not a peer', stopped_peer.name
            using errcode = 'undefined_object', hint = 'The view duplex.peers lists them.';
    end if;
    raise exception 'the stream of node "%" does not stand still', stopped_peer.name
        using errcode = 'object_not_in_prerequisite_state',
              hint = format('This is for streams in state %s; the view duplex.peers shows what state each is in.',
                            array_to_string(stopped_peer.states, ' or '));
end
$$;

-- The stream goes on, with the next transaction or after it.
create function duplex.let_go_on(name text, skip_next boolean) returns void
    language sql volatile set search_path = pg_catalog, pg_temp
as $$
    update duplex.peer_registry p
       set state = 'waiting', reason = null, skip_next = let_go_on.skip_next, state_changed_at = now()
     where p.name = let_go_on.name;
    update duplex.node n set replay_stopped = null, replay_skip_next = let_go_on.skip_next where n.name = let_go_on.name
$$;

create function duplex.retry_peer(name text) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform duplex.stopped_peer(retry_peer.name, '{stopped,gap}');
    perform duplex.let_go_on(retry_peer.name, false);
    update duplex.apply_errors e
       set resolution = 'retried', resolved_at = now(), resolved_by = session_user
     where e.peer = retry_peer.name and e.resolution is null;
end
$$;
comment on function duplex.retry_peer(text) is
    'The cause is gone: the relay tries again, within seconds, what this peer''s stream stopped at.';

create function duplex.skip_change(name text) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    failed bigint;
begin
    perform duplex.stopped_peer(skip_change.name, '{stopped}');
    select e.id into failed from duplex.apply_errors e
     where e.peer = skip_change.name and e.resolution is null and e.ordinal is not null
     order by e.id desc limit 1;
    if not found then
        raise exception 'the stream of node "%" has not stopped at a single change', skip_change.name
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Remove the cause and call duplex.retry_peer, or leave the whole transaction out with duplex.skip_transaction.';
    end if;
    update duplex.apply_errors e
       set resolution = 'change skipped', resolved_at = now(), resolved_by = session_user where e.id = failed;
    perform duplex.let_go_on(skip_change.name, false);
end
$$;
comment on function duplex.skip_change(text) is
    'Leaves out the one change at which this peer''s stream stopped, for good; the rest of its transaction is applied.';

create function duplex.skip_transaction(name text) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform duplex.stopped_peer(skip_transaction.name, '{stopped}');
    if not exists (select from duplex.apply_errors e where e.peer = skip_transaction.name and e.resolution is null) then
        raise exception 'the stream of node "%" has not stopped at a transaction', skip_transaction.name
            using errcode = 'object_not_in_prerequisite_state', hint = 'See the column reason of duplex.peers.';
    end if;
    perform duplex.let_go_on(skip_transaction.name, true);
    update duplex.apply_errors e
       set resolution = 'transaction skipped', resolved_at = now(), resolved_by = session_user
     where e.peer = skip_transaction.name and e.resolution is null;
end
$$;
comment on function duplex.skip_transaction(text) is
    'Leaves out the transaction at which this peer''s stream stopped, for good: this node will differ in what it changed.';

create function duplex.resync_peer(name text, next_offset bigint) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if next_offset is null or next_offset < 0 then
        raise exception 'a Kafka offset is 0 or more' using errcode = 'invalid_parameter_value';
    end if;
    if exists (select from duplex.node n where n.name = resync_peer.name) then
        raise exception 'node "%" is this database itself', resync_peer.name
            using errcode = 'invalid_parameter_value',
                  hint = 'What cannot be brought back of its own stream is left out with duplex.skip_change or duplex.skip_transaction.';
    end if;
    perform duplex.stopped_peer(resync_peer.name, '{stopped,gap,waiting}');
    -- Taken up when the relay opens the stream, in the transaction that moves the replication origin's progress.
    update duplex.peer_registry p
       set state = 'waiting', reason = null, node_id = null, generation = 0, last_lsn = 0, last_xid = 0,
           hello_offset = null, kafka_cluster = null, settled = null, held = null, start_offset = next_offset, skip_next = false,
           state_changed_at = now()
     where p.name = resync_peer.name;
    -- The tables were made equal: nothing of before is missing.
    delete from duplex.promised d where d.peer = resync_peer.name;
    update duplex.apply_errors e
       set resolution = 'resynced', resolved_at = now(), resolved_by = session_user
     where e.peer = resync_peer.name and e.resolution is null;
end
$$;
comment on function duplex.resync_peer(text, bigint) is
    'After a gap, once the tables were made equal by hand: this peer''s stream goes on at that Kafka offset.';

create function duplex.change_kafka() returns void
    language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
    update duplex.node set kafka_cluster = null;
    select duplex.drain_remade()
$$;
comment on function duplex.change_kafka() is
    'This node moves to another Kafka cluster: the relay may publish to the next one that it meets.';

create function duplex.apply_skip("offset" bigint) returns void
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    -- The same place as an applied transaction's: the progress of this session's replication origin.
    perform pg_replication_origin_xact_setup('0/0'::pg_lsn + ("offset" + 1), now());
    update duplex.peer_registry p set skip_next = false where p.name = current_setting('duplex.origin');
    update duplex.node n set replay_skip_next = false where n.name = current_setting('duplex.origin');
end
$$;
comment on function duplex.apply_skip(bigint) is
    'Relay, in a marked session: the transaction whose last record has this offset is left out, as an operator said.';
