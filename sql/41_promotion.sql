-- A database that has less of its peers than it once had: its server was promoted, or restored, before it had received all.

create function duplex.timeline() returns integer
    language c strict volatile
    as 'MODULE_PATHNAME', 'timeline_wrapper';
comment on function duplex.timeline() is 'The timeline that the server writes its WAL on; every promotion begins another one.';

create function duplex.announce_all() returns void
    language c strict volatile
    as 'MODULE_PATHNAME', 'announce_all_wrapper';
comment on function duplex.announce_all() is 'Tells all sessions to look up anew what they know of any table.';

create table duplex.promised (
    peer        text   primary key,
    next_offset bigint not null
);
comment on table duplex.promised is
    'Peers that this node has told others it had applied further than it has: what is to be caught up with.';
comment on column duplex.promised.next_offset is 'The Kafka offset up to which it had.';

-- Others may have forgotten by that, so until it is made good counters and merged columns cannot be written to here.
create function duplex.lacks() returns text
    language sql volatile security definer set search_path = pg_catalog, pg_temp set jit = off
as $$
    select case when pg_is_in_recovery() then null
                when n.timeline <> duplex.timeline()
                then 'what its own stream says it had: the relay has not read it since the server was promoted'
                else (select string_agg(format('the stream of %s from %s to %s', p.peer, duplex.next_offset(p.peer), p.next_offset - 1),
                                        ', ' order by p.peer)
                        from duplex.promised p) end
      from duplex.node n
$$;
comment on function duplex.lacks() is
    'What this database lacks of what it had applied before its server was promoted; null if nothing.';

-- A crash alone takes nothing back that others could have forgotten by: watermarks are written down with their offset, and
-- what it does forget of the offset is heartbeats. Compared by that, tables would take no writes after every crash.
create function duplex.drain_promised(peers text[], next_offsets bigint[], set_back boolean) returns text
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set jit = off
as $$
declare
    promoted boolean := (select n.timeline <> duplex.timeline() from duplex.node n);
begin
    if not (set_back or promoted) then
        return duplex.lacks();
    end if;
    insert into duplex.promised as p
    select s.peer, s.next_offset
      from unnest(drain_promised.peers, drain_promised.next_offsets) s (peer, next_offset)
      join duplex.peer_registry r on r.name = s.peer
     where s.next_offset > duplex.next_offset(s.peer)
    on conflict on constraint promised_pkey do update
       set next_offset = greatest(p.next_offset, excluded.next_offset);
    -- A backup that was put in place of the database begins no other timeline, and sessions may know that all is well.
    if found then
        perform duplex.announce_all();
    end if;
    update duplex.node n set timeline = duplex.timeline() where promoted;
    return duplex.lacks();
end
$$;
comment on function duplex.drain_promised(text[], bigint[], boolean) is
    'Relay: how far the own topic says that this node had applied its peers, and whether it has shown that the database was set back. Returns what it lacks; null if nothing.';

create function duplex.catch_up() returns boolean
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set jit = off
as $$
begin
    delete from duplex.promised p
     where p.next_offset <= duplex.next_offset(p.peer)
        or not exists (select from duplex.peer_registry r where r.name = p.peer);
    return duplex.lacks() is null;
end
$$;
comment on function duplex.catch_up() is 'Strikes off what has been caught up with. Returns whether that is all.';
