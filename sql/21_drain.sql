-- Draining: what the relay calls to get at the queue. The protocol between the two is in docs/relay.md.

create function duplex.drain_open(newest_generation bigint default 0)
    returns table (node text, generation bigint, topic_offset bigint, hello bytea)
    language c strict volatile security definer set search_path = pg_catalog, pg_temp
    as 'MODULE_PATHNAME', 'drain_open_wrapper';
comment on function duplex.drain_open(bigint) is
    'Relay: takes the node''s stream over. Returns where the last relay stopped and the hello record to publish.';

create function duplex.drain(wait_ms integer, max_bytes integer)
    returns setof bytea
    language c strict volatile security definer set search_path = pg_catalog, pg_temp set jit = off
    as 'MODULE_PATHNAME', 'drain_wrapper';
comment on function duplex.drain(integer, integer) is
    'Relay: the next records of the stream, waiting for at most so many milliseconds.';

create function duplex.drain_confirm(lsn bigint, xid bigint, topic_offset bigint)
    returns void
    language c strict volatile security definer set search_path = pg_catalog, pg_temp set jit = off
    as 'MODULE_PATHNAME', 'drain_confirm_wrapper';
comment on function duplex.drain_confirm(bigint, bigint, bigint) is
    'Relay: Kafka has acknowledged everything up to and including this transaction.';

create function duplex.drain_missing(xids bigint[], commit_ts bigint[])
    returns setof boolean
    language c strict volatile security definer set search_path = pg_catalog, pg_temp
    as 'MODULE_PATHNAME', 'drain_missing_wrapper';
comment on function duplex.drain_missing(bigint[], bigint[]) is
    'Relay: of transactions found in the own topic, which ones this database never committed: it was promoted without them.';

create function duplex.drain_remade() returns void
    language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
    update duplex.drain_state set topic_offset = null;
    -- How far a promoted server had its own stream back is an offset of the topic, too.
    select pg_replication_origin_advance(o.roname, '0/0')
      from pg_replication_origin o
      join pg_database d on d.datname = current_database()
      join duplex.node n on o.roname = 'duplex_' || d.oid || '_' || n.name
$$;
comment on function duplex.drain_remade() is
    'Relay: the own topic is another one than before, so no offset in it that this database knows means anything.';
